"""mask, bias, lengths, causal, scale, row_scale and masked_rows, alone and together."""

import itertools
import math

import pytest
import torch

from tests.numerics import EXPANDED_LAYOUTS, FLOATS, LAYOUTS, accumulator, lay_out, same_bits
from tests.softmax.oracle import ALGORITHMS, KINDS, Problem, op
from tests.softmax.samples import booleans, integers, randn

pytestmark = pytest.mark.isa

ALL_KINDS = (*KINDS, "logsumexp")


def check_all_kinds(problem: Problem, **extra) -> None:
    problem.check_kinds(**extra)
    problem.check_lse(
        op("logsumexp")(problem.x, problem.dims, **problem.score_args(), **extra),
        accumulator(problem.x.dtype),
    )


# ---- mask ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [0, 1, 2, (0, 2), (0, 1, 2)])
@pytest.mark.parametrize(
    "mask_shape",
    [(5, 12, 67), (1, 12, 67), (5, 1, 67), (5, 12, 1), (12, 67), (67,), (12, 1), (1,), ()],
)
def test_mask_broadcasts(mask_shape, dim, dtype, device):
    x = randn(5, 12, 67, dtype=dtype, device=device)
    for zero in (False, True):
        check_all_kinds(
            Problem(x=x, dim=dim, mask=booleans(*mask_shape, device=device), zero_masked_rows=zero)
        )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 3, 15, 16, 17, 63, 64, 65, 300, 1025, 8200, 90_001])
@pytest.mark.parametrize("share", [0.02, 0.5, 1])
def test_mask_sizes(share, n, dtype, device):
    """From rows that lose all but a few elements to rows that lose none."""
    rows = max(1, min(37, 8_000 // n))
    x = randn(rows, n, dtype=dtype, device=device, spread=4)
    mask = booleans(rows, n, device=device, share=share)
    check_all_kinds(Problem(x=x, mask=mask, zero_masked_rows=True))


@pytest.mark.parametrize("mask_layout", [*LAYOUTS, *EXPANDED_LAYOUTS])
@pytest.mark.parametrize("x_layout", ["contiguous", "transposed", "padded rows", "expanded last"])
def test_mask_layouts(x_layout, mask_layout, device):
    x = lay_out(randn(4, 10, 33, device=device), x_layout)
    mask = lay_out(booleans(4, 10, 33, device=device), mask_layout)
    for dim in (0, 1, 2, (1, 2), (0, 2)):
        check_all_kinds(Problem(x=x, dim=dim, mask=mask, zero_masked_rows=True))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [5, 64, 1030, 20_011])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_excluded_has_no_influence(algorithm, n, dtype, device):
    """NaN, infinities and a towering maximum under the mask or past the length change no bit."""
    x = randn(6, n, dtype=dtype, device=device)
    mask = booleans(6, n, device=device)
    lengths = integers(0, n, 6, device=device)
    part = mask & (torch.arange(n, device=device) < lengths[:, None])
    for poison in (math.nan, math.inf, -math.inf, torch.finfo(dtype).max):
        poisoned = torch.where(part, x, torch.full_like(x, poison))
        for kind in ALL_KINDS:
            for args in ({"mask": mask, "lengths": lengths}, {"mask": part}):
                args |= {"algorithm": ALGORITHMS[algorithm]}
                a, b = op(kind)(x, [-1], **args), op(kind)(poisoned, [-1], **args)
                assert same_bits(a, b), (kind, poison)
                if kind != "logsumexp":
                    shut = b[~part & part.any(-1, keepdim=True)]
                    assert (shut == (0 if kind == "softmax" else -math.inf)).all()
    bias = torch.where(part, 0.0, math.nan)
    for kind in ALL_KINDS:
        assert same_bits(
            op(kind)(x, [-1], mask=part, bias=bias),
            op(kind)(x, [-1], mask=part, bias=bias.nan_to_num()),
        )


# ---- rows without any element ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 7, 64, 1000, 10_001])
@pytest.mark.parametrize("how", ["mask", "lengths", "-inf", "bias", "mask and -inf"])
@pytest.mark.parametrize("dim", [-1, 0])
def test_masked_rows(dim, how, n, dtype, device):
    """Empty rows among full ones: nothing may leak between rows that share a vector."""
    rows = 11 if n < 1000 else 3
    x = randn(rows, n, dtype=dtype, device=device)
    gone = booleans(rows, 1, device=device, share=0.5)
    gone[1], gone[2] = True, False
    part = ~gone.expand(rows, n)
    problem = Problem(x=x)
    if how == "mask":
        problem.mask = part
    elif how == "lengths":
        problem.lengths = torch.where(gone[:, 0], 0, n)
    elif how == "-inf":
        problem.x = x.masked_fill(~part, -math.inf)
    elif how == "bias":
        problem.bias = torch.zeros_like(x).masked_fill(~part, -math.inf)
    else:
        problem.x = x.masked_fill(~part, -math.inf)
        problem.mask = booleans(rows, n, device=device) | ~gone
    if dim == 0:
        problem.x, problem.dim = problem.x.t().contiguous(), 0
        problem.mask = None if problem.mask is None else problem.mask.t()
        problem.bias = None if problem.bias is None else problem.bias.t()
    for zero, algorithm in itertools.product((False, True), ALGORITHMS.values()):
        problem.zero_masked_rows = zero
        check_all_kinds(problem, algorithm=algorithm) if zero else [
            problem.check_all(kind, algorithm=algorithm) for kind in KINDS
        ]


# ---- lengths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("n", [1, 17, 64, 130, 2050, 20_001])
def test_lengths(n, index, dtype, device):
    rows = max(3, min(19, 8000 // n))
    x = randn(rows, n, dtype=dtype, device=device, spread=3)
    lengths = integers(0, n, rows, dtype=index, device=device)
    lengths[0], lengths[1], lengths[-1] = n, 1, 0
    check_all_kinds(Problem(x=x, lengths=lengths))
    check_all_kinds(Problem(x=x, lengths=lengths[:, None], zero_masked_rows=True))
    columns = Problem(x=x.t().contiguous(), dim=0, lengths=lengths, zero_masked_rows=True)
    check_all_kinds(columns)


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded last"])
@pytest.mark.parametrize("dim", [0, 1, 2, (0, 1), (1, 2), (0, 2), (2, 0), (0, 1, 2)])
def test_lengths_count_in_row_major_order(dim, layout, device):
    """With several reduced dims, a length counts elements in logical order, whatever the order in
    memory: a walk that follows strides would cut off the wrong ones."""
    x = lay_out(randn(4, 6, 9, device=device), layout)
    dims = (dim,) if isinstance(dim, int) else dim
    n = math.prod(x.shape[d] for d in dims)
    full = [1 if d in dims else size for d, size in enumerate(x.shape)]
    short = [size for d, size in enumerate(x.shape) if d not in dims]
    for shape in (full, short, [1] * len(short), []):
        lengths = integers(0, n, *shape, device=device)
        check_all_kinds(Problem(x=x, dim=dim, lengths=lengths, zero_masked_rows=True))


# ---- causal -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("causal", [1, 2])
@pytest.mark.parametrize(
    "queries, keys", [(1, 1), (7, 7), (33, 70), (70, 33), (1, 65), (65, 1), (130, 130)]
)
def test_causal(queries, keys, causal, dtype, device):
    x = randn(3, queries, keys, dtype=dtype, device=device, spread=3)
    mask = booleans(3, 1, keys, device=device)
    for zero in (False, True):
        check_all_kinds(Problem(x=x, causal=causal, zero_masked_rows=zero))
        check_all_kinds(Problem(x=x, causal=causal, mask=mask, zero_masked_rows=zero))


@pytest.mark.parametrize("causal", [1, 2])
@pytest.mark.parametrize("layout", [*LAYOUTS, *EXPANDED_LAYOUTS])
def test_causal_layouts(layout, causal, device):
    """The query index must survive the merging and reordering of row dims."""
    x = lay_out(randn(2, 3, 9, 20, device=device), layout)
    check_all_kinds(Problem(x=x, causal=causal, zero_masked_rows=True))
    check_all_kinds(Problem(x=x[0, 0], causal=causal, zero_masked_rows=True))


# ---- scale and bias -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [0.125, -1.0, 0.0, 1e-20, 37.5, math.pi])
def test_scale(scale, dtype, device):
    """A negative scale turns the smallest element into the largest: a maximum taken of x instead
    of the scores fails here."""
    for shape, dim in (((9, 50), -1), ((3, 5000), -1), ((6, 40, 33), 1), ((2, 150_001), -1)):
        x = randn(*shape, dtype=dtype, device=device)
        for algorithm in ALGORITHMS.values():
            check_all_kinds(Problem(x=x, dim=dim, scale=scale), algorithm=algorithm)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [0, 1, 2, (0, 2), (1, 2)])
def test_row_scale(dim, dtype, device):
    x = randn(4, 9, 70, dtype=dtype, device=device)
    dims = (dim,) if isinstance(dim, int) else dim
    full = [1 if d in dims else size for d, size in enumerate(x.shape)]
    short = [size for d, size in enumerate(x.shape) if d not in dims]
    for shape in (full, short, [1] * len(full), short[-1:], []):
        row_scale = randn(*shape, dtype=accumulator(dtype), device=device)
        check_all_kinds(Problem(x=x, dim=dim, row_scale=row_scale))
        check_all_kinds(Problem(x=x, dim=dim, row_scale=-row_scale, scale=0.3))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bias_dtype", FLOATS)
@pytest.mark.parametrize("dim", [0, -1])
def test_bias(dim, bias_dtype, dtype, device):
    for shape, bias_shape in itertools.product(
        [(7, 65), (3, 3001)], [(None, None), (1, None), (None, 1), (None,), ()]
    ):
        sizes = shape[-len(bias_shape) :] if bias_shape else ()
        given = [n if b is None else b for n, b in zip(sizes, bias_shape, strict=True)]
        bias = randn(*given, dtype=bias_dtype, device=device, key=1)
        check_all_kinds(Problem(x=randn(*shape, dtype=dtype, device=device), dim=dim, bias=bias))


@pytest.mark.parametrize("bias_layout", [*LAYOUTS, *EXPANDED_LAYOUTS])
def test_bias_layouts(bias_layout, device):
    for dtype in (torch.float32, torch.bfloat16):
        bias = lay_out(randn(4, 11, 34, dtype=dtype, device=device, key=1), bias_layout)
        for layout, dim in itertools.product(("contiguous", "transposed"), (0, 1, 2, (0, 2))):
            x = lay_out(randn(4, 11, 34, dtype=dtype, device=device), layout)
            check_all_kinds(Problem(x=x, dim=dim, bias=bias))


# ---- together -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "shape", [(2, 5, 9), (3, 16, 64), (2, 33, 130), (2, 4, 5003), (1, 2, 40_001)]
)
def test_everything_at_once(shape, algorithm, dtype, device):
    b, q, k = shape
    x = randn(*shape, dtype=dtype, device=device, spread=2)
    check_all_kinds(
        Problem(
            x=x,
            mask=booleans(b, 1, k, device=device, share=0.8),
            bias=randn(q, k, dtype=dtype, device=device, key=1),
            lengths=integers(0, k, b, 1, device=device),
            causal=2,
            scale=0.7,
            row_scale=randn(b, q, dtype=accumulator(dtype), device=device, key=2),
            zero_masked_rows=True,
        ),
        algorithm=ALGORITHMS[algorithm],
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "first dim innermost", "apart"])
def test_everything_over_columns(layout, dtype, device):
    for dim in (0, 1, (0, 1)):
        x = lay_out(randn(13, 21, 35, dtype=dtype, device=device), layout)
        dims = (dim,) if isinstance(dim, int) else dim
        rows = [size for d, size in enumerate(x.shape) if d not in dims]
        n = math.prod(x.shape[d] for d in dims)
        check_all_kinds(
            Problem(
                x=x,
                dim=dim,
                mask=booleans(13, 21, 1, device=device, share=0.8),
                bias=randn(21, 35, device=device, key=1),
                lengths=integers(0, n, *rows, dtype=torch.int32, device=device),
                scale=-0.7,
                row_scale=randn(*rows, dtype=accumulator(dtype), device=device, key=2),
                zero_masked_rows=True,
            )
        )
