"""softmax and log_softmax with their lse: sizes, alignments, layouts, dims, dtypes, algorithms."""

import itertools

import pytest
import torch

from tests.numerics import (
    DENSE_LAYOUTS,
    EXPANDED_LAYOUTS,
    FLOATS,
    LAYOUTS,
    Guarded,
    lay_out,
    same_bits,
)
from tests.softmax.oracle import ALGORITHMS, KINDS, Problem, op
from tests.softmax.samples import randn

pytestmark = pytest.mark.isa

# Around every vector width, row-group size, chunk and scratch limit a kernel could have.
SIZES = [
    *range(1, 18), 23, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129, 200, 255, 256,
    257, 383, 511, 512, 513, 1000, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4097, 5000, 8191, 8193,
    16384, 32767, 65537, 131071, 262145,
]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", SIZES)
def test_sizes(n, dtype, device):
    rows = max(1, min(67, 8000 // n))
    x = randn(rows, n, dtype=dtype, device=device, spread=4)
    Problem(x=x).check_kinds()
    if rows > 1:  # a single row is aligned, whatever its length
        Problem(x=x[:1].clone()).check_kinds()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 200_001), (2, 70_000), (3, 40_001), (30_003, 3)])
def test_few_and_many_rows(shape, dtype, device):
    x = randn(*shape, dtype=dtype, device=device)
    Problem(x=x).check_kinds()


@pytest.mark.parametrize("n", [1, 5, 16, 63, 65, 130, 515, 1030])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_alignments(kind, dtype, n, device):
    """Every start within a cache line, x and out apart: heads and tails must not spill over, nor
    read what lies beside the row (NaN there)."""
    line = 64 // torch.empty(0, dtype=dtype).element_size()
    values = randn(3, n, dtype=dtype, device=device)
    problem = Problem(x=values)
    for start in range(line):
        x = lay_out(values, "contiguous", start=start)
        out = Guarded(x.shape, dtype, device=device, start=(start * 5 + 3) % line)
        lse = Guarded(x.shape[:1], torch.float64 if dtype == torch.float64 else torch.float32,
                      device=device, start=start)  # fmt: skip
        op(f"{kind}_lse").out(x, [-1], out=out.tensor, lse=lse.tensor)
        out.assert_intact()
        lse.assert_intact()
        problem.check(kind, out.tensor)
        problem.check_lse(lse.tensor)
        alone = Guarded(x.shape, dtype, device=device, start=(start * 5 + 3) % line)
        op(kind).out(x, [-1], out=alone.tensor)
        alone.assert_intact()
        problem.check(kind, alone.tensor)


DIMS = [0, 1, 2, (0, 1), (1, 2), (0, 2), (2, 0), (0, 1, 2), (-1, -2)]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("layout", [*LAYOUTS, *EXPANDED_LAYOUTS])
def test_layouts(layout, dim, device):
    for dtype, shape in itertools.product(FLOATS, [(5, 7, 67), (3, 40, 16), (33, 2, 5)]):
        x = lay_out(randn(*shape, dtype=dtype, device=device), layout)
        Problem(x=x, dim=dim).check_kinds()


@pytest.mark.parametrize("dim", [0, 1, 2, (0, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_out_layouts(layout, dim, device):
    """`out` and `lse` laid out unlike x, with red zones in every gap."""
    for dtype, x_layout in itertools.product(FLOATS, ["contiguous", "transposed", "stepped"]):
        x = lay_out(randn(4, 9, 35, dtype=dtype, device=device), x_layout)
        problem = Problem(x=x, dim=dim)
        lse_shape = tuple(n for d, n in enumerate(x.shape) if d not in problem.dims)
        for kind in KINDS:
            out = Guarded(tuple(x.shape), dtype, layout, device=device)
            lse = Guarded(lse_shape, problem.acc, layout, device=device)
            op(f"{kind}_lse").out(x, problem.dims, out=out.tensor, lse=lse.tensor)
            out.assert_intact()
            lse.assert_intact()
            problem.check(kind, out.tensor)
            problem.check_lse(lse.tensor)
            alone = Guarded(tuple(x.shape), dtype, layout, device=device)
            op(kind).out(x, problem.dims, out=alone.tensor)
            alone.assert_intact()
            problem.check(kind, alone.tensor)


@pytest.mark.parametrize("layout", [*LAYOUTS, *EXPANDED_LAYOUTS])
def test_output_layout_follows_x(layout, device):
    x = lay_out(randn(4, 5, 6, device=device), layout)
    for kind in KINDS:
        assert op(kind)(x, [1]).stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("dtype", FLOATS)
def test_columns(dtype, device):
    """The reduced dim is not the innermost: vectors run across rows, with odd remainders."""
    shapes = [(9, 1, 3), (4, 33, 65), (3, 500, 18), (2, 1500, 7), (1, 70, 1029), (2, 20_001, 3),
              (65, 3, 64), (1, 4099, 130), (1, 33_000, 33)]  # fmt: skip
    for shape, kind in itertools.product(shapes, KINDS):
        Problem(x=randn(*shape, dtype=dtype, device=device, spread=3), dim=1).check_all(kind)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [31, 32, 33, 63, 65, 96, 127, 129, 161, 288])
def test_column_blocks(width, dtype, device):
    """Rows that are neighbours in memory, around whole blocks of them, n around a group of their
    elements: a block that overlaps another keeps to its rows, in place too."""
    for n, layout in itertools.product((2, 15, 17, 50), ("contiguous", "odd start", "padded rows")):
        values = randn(3, n, width, dtype=dtype, device=device, spread=4)
        values[1, :, 0] = values[2, : n - 1, width - 1] = -torch.inf
        values[0, n - 1, width // 2] = torch.nan
        problem = Problem(x=values, dim=1, scale=0.7, zero_masked_rows=width % 2 == 0)
        args = problem.forward_args()
        x = lay_out(values, layout)
        out = Guarded(tuple(x.shape), dtype, layout, device=device)
        op("softmax").out(x, [1], out=out.tensor, **args)
        out.assert_intact()
        problem.check("softmax", out.tensor)
        op("softmax").out(x, [1], out=x, **args)
        assert same_bits(x, out.tensor)


@pytest.mark.parametrize("rank", [4, 5, 6])
def test_many_dims(rank, device):
    """High ranks in a layout none of whose dims merge, every single dim and pair reduced."""
    shape = (2, 3, 4, 3, 2, 5)[:rank]
    x = lay_out(randn(*shape, device=device), "apart")
    for dim in [*range(rank), *itertools.combinations(range(rank), 2), tuple(range(rank))]:
        Problem(x=x, dim=dim).check_kinds()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("n", [1, 7, 64, 1000, 5003, 120_001, 300_000])
def test_in_place(n, algorithm, dtype, device):
    """out= may be x itself: nothing may be read again after it was overwritten."""
    rows = max(1, min(9, 100_000 // n))
    original = randn(rows, n, dtype=dtype, device=device, spread=3)
    problem = Problem(x=original)
    for kind in KINDS:
        x = lay_out(original, "odd start")
        lse = x.new_empty(rows, dtype=problem.acc)
        op(f"{kind}_lse").out(x, [-1], algorithm=ALGORITHMS[algorithm], out=x, lse=lse)
        problem.check(kind, x)
        problem.check_lse(lse)
        x = lay_out(original, "contiguous")
        problem.check(kind, op(kind).out(x, [-1], algorithm=ALGORITHMS[algorithm], out=x))


@pytest.mark.parametrize("layout", ["transposed", "stepped", "padded rows", "apart"])
@pytest.mark.parametrize("dim", [0, 1, (0, 1)])
def test_in_place_strided(dim, layout, device):
    for dtype, kind in itertools.product(FLOATS, KINDS):
        original = randn(37, 45, dtype=dtype, device=device)
        x = lay_out(original, layout)
        problem = Problem(x=original, dim=dim)
        op(kind).out(x, problem.dims, out=x)
        problem.check(kind, x)


@pytest.mark.parametrize("out_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [-1, 0])
def test_dtype_cast(dim, dtype, out_dtype, device):
    """dtype= rounds once, from the accumulator: a detour over x's dtype costs a bf16 or fp16 x
    its digits and shows in a float32 output."""
    for n in (3, 37, 1000, 6001):
        x = randn(5, n, dtype=dtype, device=device, spread=3)
        problem = Problem(x=x, dim=dim, dtype=out_dtype)
        for kind in KINDS:
            problem.check_all(kind)
            guarded = Guarded(tuple(x.shape), out_dtype, "padded rows", device=device)
            op(kind).out(x, [dim], out=guarded.tensor)
            guarded.assert_intact()
            problem.check(kind, guarded.tensor)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("shape", [(40, 3), (21, 100), (5, 4099), (1, 90_001)])
def test_algorithms(shape, algorithm, dtype, device):
    x = randn(*shape, dtype=dtype, device=device, spread=10)
    Problem(x=x).check_kinds(algorithm=ALGORITHMS[algorithm])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("order", ["rising", "falling", "spikes"])
def test_moving_maximum(order, algorithm, device):
    """A maximum that changes at every step, or once, late: the running sum must be rescaled each
    time, and by a factor that may underflow."""
    for dtype, n in itertools.product(FLOATS, [33, 1000, 20_000]):
        ramp = torch.linspace(-200, 200, n)
        if order == "falling":
            ramp = ramp.flip(0)
        if order == "spikes":
            ramp = torch.full((n,), -150.0)
            ramp[n // 3], ramp[-1] = 50, 120
        x = ramp.to(dtype).to(device).expand(3, n).contiguous()
        Problem(x=x).check_kinds(algorithm=ALGORITHMS[algorithm])


@pytest.mark.parametrize("layout", DENSE_LAYOUTS)
def test_inputs_are_left_alone(layout, device):
    for dtype, kind in itertools.product(FLOATS, KINDS):
        guarded = Guarded((6, 50), dtype, layout, device=device)
        op(kind)(guarded.tensor, [-1])
        guarded.assert_untouched()
