"""The CUDA kernels of the softmax family, run on the host through the real ops.

FASTOPS_SIMT=1 has the CUDA launchers serve CPU tensors, so this needs a process of its own:
`FASTOPS_SIMT=1 pytest tests/simt`; `FASTOPS_SIMT=1 pytest tests/softmax` runs the family's ordinary
tests the same way. Here each kernel is reached on purpose, and every launch is checked: a report
(race, stray access, uninitialised read, divergence, element never written) is a RuntimeError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fastops._lib import _native
from tests.simt.emulator import emulator, launched
from tests.softmax.oracle import KINDS, Problem
from tests.softmax.samples import booleans, integers, randn
from tests.softmax.test_backward import Backward, check_lse_backward

pytestmark = pytest.mark.usefixtures("order")
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ops = torch.ops.fastops


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTOPS_SM90", "1")


@pytest.fixture
def one_sm(hopper: None) -> Iterator[None]:
    """Persistent kernels with few blocks, so that few rows make each go round often."""
    emulator().simt_set_device(1, 9, 0)
    yield
    emulator().simt_set_device(4, 9, 0)


def vectors(dtype: torch.dtype, count: float) -> int:
    """Elements in `count` vectors of 16 bytes; the kernels' limits are in vectors."""
    return int(count * 16 // dtype.itemsize)


def misalign(t: Tensor) -> Tensor:
    """The same values, rows one element apart and starting one element past an aligned address."""
    storage = t.new_full((t.shape[0] * (t.shape[1] + 1) + 1,), torch.nan)
    view = storage.as_strided(t.shape, (t.shape[1] + 1, 1), 1)
    return view.copy_(t)


# Kernel -> (rows, vectors per row) that the heuristics send there, odd on purpose; 4 SMs.
ROWS = {
    "softmax rows": [(37, 0.6), (5, 3.7), (9, 17.2), (3, 97.7)],
    "softmax block_row": [(3, 300.3), (2, 1999.9)],
    "softmax stream": [(5, 2500.3)],
    "softmax split": [(1, 8300.3)],
}


def shapes(dtype: torch.dtype) -> list[tuple[str, int, int]]:
    return [
        (kernel, rows, max(1, vectors(dtype, count)) | 1)
        for kernel, cases in ROWS.items()
        for rows, count in cases
    ]


def run_all(problem: Problem, kernel: str) -> None:
    for kind in KINDS:
        problem.check_all(kind)
        assert launched() == {kernel}
    lse = ops.logsumexp(problem.x, problem.dims, False, **problem.score_args())
    problem.check_lse(lse)
    assert launched() == {kernel}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("aligned", [True, False])
def test_forward(dtype: torch.dtype, aligned: bool) -> None:
    for kernel, rows, n in shapes(dtype):
        x = randn(rows, n, dtype=dtype, spread=3)
        run_all(Problem(x=x if aligned else misalign(x)), kernel)


@pytest.mark.parametrize("dtype", FLOATS)
def test_forward_with_everything(dtype: torch.dtype) -> None:
    for kernel, rows, n in shapes(dtype):
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        problem = Problem(
            x=misalign(randn(rows, n, dtype=dtype)),
            mask=booleans(n),
            bias=randn(rows, n, dtype=dtype, key=1),
            lengths=integers(0, n, rows, dtype=torch.int32),
            scale=0.7,
            row_scale=randn(rows, dtype=acc, key=2).abs() + 0.5,
            zero_masked_rows=True,
        )
        run_all(problem, kernel)


@pytest.mark.parametrize("causal", [1, 2])
def test_causal(causal: int) -> None:
    for queries, keys in [(7, 33), (40, 19), (5, 1025)]:
        x = randn(2, queries, keys, dtype=torch.bfloat16)
        for kind in KINDS:
            Problem(x=x, causal=causal, zero_masked_rows=True).check_all(kind)


@pytest.mark.parametrize("dtype", FLOATS)
def test_cluster(dtype: torch.dtype, hopper: None) -> None:
    x = randn(3, vectors(dtype, 9000) | 1, dtype=dtype)
    run_all(Problem(x=x), "softmax cluster")
    run_all(Problem(x=misalign(x)[:2], mask=booleans(x.shape[1])), "softmax cluster")


# One block a row, two (backward: four), eight; rows on 16 bytes, and rows that start anywhere.
CLUSTER_ROWS = [(11, 2600), (11, 2500.3), (11, 9000.3), (10, 30001)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("rows", "count"), CLUSTER_ROWS)
def test_cluster_goes_round(dtype: torch.dtype, rows: int, count: float, one_sm: None) -> None:
    """Five rows and more in the same slots; some lie as the row before them, some do not."""
    n = ring_length(dtype, count)
    x = randn(rows, n, dtype=dtype)
    Problem(x=x, scale=0.5).check_all("softmax")
    assert launched() == {"softmax cluster"}
    if count < 9000:
        lengths = integers(0, n, rows)
        lengths[1] = 0
        for view in (x, misalign(x)):
            Problem(x=view, lengths=lengths, zero_masked_rows=True).check_all("log_softmax")
        assert launched() == {"softmax cluster"}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("rows", "count"), CLUSTER_ROWS[:3])
def test_cluster_backward_goes_round(
    dtype: torch.dtype, rows: int, count: float, one_sm: None
) -> None:
    """Also where y and dy lie differently, so that one of them is not copied in bulk."""
    n = ring_length(dtype, count)
    x = randn(rows, n, dtype=dtype)
    y = torch.softmax(x, -1)
    dy = randn(rows, n, dtype=dtype, key=3)
    for one, other in ((y, dy), (misalign(y), dy), (y, misalign(dy))):
        case = Backward("softmax", Problem(x=x), one, other)
        case.check(case.run())
        assert launched() == {"softmax cluster"}


# Dtype, elements (docs/softmax.md): a million, most of which 16 blocks hold or, of fp32 backward,
# less than half; the most that they hold whole.
LONG_ROWS = [
    (torch.bfloat16, 1 << 20), (torch.float32, 1 << 20),
    (torch.bfloat16, 917_504), (torch.float32, 458_752),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "n"), LONG_ROWS)
def test_long_rows(dtype: torch.dtype, n: int, one_sm: None) -> None:
    problem = Problem(x=randn(1, n, dtype=dtype, spread=3))
    launched()
    y = ops.softmax(problem.x, [1])
    problem.check("softmax", y)
    case = Backward("softmax", problem, y, randn(1, n, dtype=dtype, key=3))
    case.check(case.run())
    assert launched() == {"softmax cluster"}


def test_rows_that_no_cluster_holds_go_round(one_sm: None) -> None:
    """Rows of which a part is read twice, some on 16 bytes and some not, of several lengths."""
    n = 2 * 229_376 + 8191  # fp64: over what 16 blocks hold in the forward too
    x = randn(3, n, dtype=torch.float64)
    lengths = torch.tensor([n - 1, 0, n - 4097])
    problem = Problem(x=x, lengths=lengths, zero_masked_rows=True)
    launched()
    problem.check_all("log_softmax")
    y = ops.log_softmax(x, [1], **problem.validity_args())
    case = Backward("log_softmax", problem, y, randn(3, n, dtype=torch.float64, key=3))
    case.check(case.run())
    assert launched() == {"softmax cluster"}


def test_sm_80_has_neither_clusters_nor_rings(hopper: None) -> None:
    """The same long rows on a device with less shared memory and without clusters."""
    emulator().simt_set_device(4, 8, 0)
    try:
        for rows, vec in ((3, 2500.3), (3, 9000), (400, 128)):
            x = randn(rows, vectors(torch.float32, vec) | 1)
            Problem(x=x).check_all("softmax")
            assert launched() <= {"softmax stream", "softmax split", "softmax rows"}
    finally:
        emulator().simt_set_device(4, 9, 0)


# ---- Rings -----------------------------------------------------------------------------------

RING_FLOATS = [torch.float32, torch.float16, torch.bfloat16]
# Vectors of 16 bytes a row: one, four, eight a lane, and more than a lane holds. With a fraction:
# rows that start anywhere.
RING_ROWS = [8, 12.3, 25, 33.4, 128, 130, 400]


def ring_plan(n: int, dtype: torch.dtype, **options: bool) -> dict:
    return _native.softmax_cuda_plan(
        rows=1 << 30, n=n, dtype=str(dtype).removeprefix("torch."), dense=True, hopper=True,
        sm_count=1, **options,
    )  # fmt: skip


def ring_rows(n: int, dtype: torch.dtype, **options: bool) -> int:
    """As many as make every warp fill each of its slots at least twice and work on five or more;
    the last slot is filled in part."""
    plan = ring_plan(n, dtype, **options)
    assert plan["kernel"] == "ring"
    warps = plan["blocks"] * plan["threads"] // 32
    return plan["group"] * warps * max(5, 2 * plan["slots"]) + plan["group"] // 2 + 1


def ring_length(dtype: torch.dtype, vector_count: float) -> int:
    n = vectors(dtype, vector_count)
    return n if vector_count == int(vector_count) else n | 1


@pytest.mark.parametrize("dtype", RING_FLOATS)
@pytest.mark.parametrize("count", RING_ROWS)
def test_ring(dtype: torch.dtype, count: float, one_sm: None) -> None:
    n = ring_length(dtype, count)
    for kind in KINDS:
        x = randn(ring_rows(n, dtype, log=kind == "log_softmax"), n, dtype=dtype, spread=3)
        problem = Problem(x=x, scale=-0.7)
        problem.check_all(kind)
        assert launched() == {"softmax ring"}
    problem.check_lse(ops.logsumexp(x, [-1], scale=-0.7))
    assert launched() == {"softmax ring"}


@pytest.mark.parametrize("dtype", RING_FLOATS)
@pytest.mark.parametrize("count", RING_ROWS)
def test_ring_backward(dtype: torch.dtype, count: float, one_sm: None) -> None:
    n = ring_length(dtype, count)
    rows = ring_rows(n, dtype, backward=True)
    assert "softmax ring" in check_backward(randn(rows, n, dtype=dtype), (1,), lambda t: t)


def test_ring_in_place_casts_and_special_rows(one_sm: None) -> None:
    inf, nan = torch.inf, torch.nan
    special = torch.tensor([[1, nan, 2], [inf, 1, 2], [-inf] * 3, [-inf, 1, 2], [nan, -inf, inf]])
    for n in (32, 49, 512, 1200):
        x = randn(ring_rows(n, torch.float32), n)
        x[3::7] = -inf
        for i, row in enumerate(special):
            x[3 + 7 * i :: 35, :3] = row
        for kind in KINDS:
            for dtype in RING_FLOATS:
                y = getattr(ops, kind)(x, [-1], dtype=dtype)
                assert launched() == {"softmax ring"}
                expected = getattr(torch, kind)(x, -1).to(dtype)
                torch.testing.assert_close(y, expected, equal_nan=True)
            zeroed = getattr(ops, kind)(x, [-1], zero_masked_rows=True)
            masked = (x == -inf).all(-1)
            assert (zeroed[masked] == (0 if kind == "softmax" else -inf)).all()
            y = getattr(ops, kind)(x, [-1])
            again = x.clone()
            getattr(ops, kind).out(again, [-1], out=again)
            torch.testing.assert_close(again, y, rtol=0, atol=0, equal_nan=True)
            assert launched() == {"softmax ring"}


def test_what_rings_do_not_take(one_sm: None) -> None:
    """Masks, rows with gaps, rows that start off 16 bytes, fp64: answered by other kernels."""
    for dtype, n in ((torch.bfloat16, 200), (torch.float32, 100), (torch.float64, 100)):
        x = randn(ring_rows(200, torch.bfloat16), n, dtype=dtype)
        problems = [Problem(x=x, mask=booleans(n)), Problem(x=misalign(x))]
        problems.append(Problem(x=x[:, : n - 8]))
        if dtype == torch.float64:
            problems.append(Problem(x=x))
        for problem in problems:
            problem.check_all("softmax")
            assert launched() == {"softmax rows"}
    x = randn(9, 200, dtype=torch.bfloat16)  # too few to go round
    Problem(x=x).check_all("softmax")
    assert launched() == {"softmax rows"}


@pytest.mark.parametrize("dtype", FLOATS)
def test_other_dims(dtype: torch.dtype) -> None:
    run_all(Problem(x=randn(3, 45, 64, dtype=dtype), dim=1), "softmax column")
    run_all(Problem(x=randn(2, 300, 16, dtype=dtype), dim=1), "softmax column")
    run_all(Problem(x=randn(3, 45, 7, dtype=dtype), dim=1), "softmax strided")
    run_all(Problem(x=randn(5, 6, 33, dtype=dtype), dim=(0, 2)), "softmax strided")
    mask = booleans(45, 1)
    run_all(Problem(x=randn(3, 45, 64, dtype=dtype), dim=1, mask=mask), "softmax strided")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("out", FLOATS)
def test_casts(dtype: torch.dtype, out: torch.dtype) -> None:
    for n in (5, 515, 2049):
        for kind in KINDS:
            Problem(x=randn(3, n, dtype=dtype), dtype=out).check_all(kind)


def test_in_place() -> None:
    for dtype in FLOATS:
        for _, rows, n in shapes(dtype):
            x = misalign(randn(rows, n, dtype=dtype))
            expected = ops.softmax(x, [-1])
            assert torch.equal(ops.softmax.out(x, [-1], out=x), expected)


def test_special_values() -> None:
    inf, nan = torch.inf, torch.nan
    rows = [[1, nan, 2], [inf, 1, 2], [-inf, -inf, -inf], [-inf, 1, 2], [nan, -inf, inf]]
    for n in (3, 700, 9000):
        x = torch.full((len(rows), n), -inf)
        x[:, : len(rows[0])] = torch.tensor(rows)
        for view in (x, misalign(x)):
            torch.testing.assert_close(
                ops.softmax(view, [-1]), torch.softmax(x, -1), equal_nan=True
            )
            torch.testing.assert_close(
                ops.log_softmax(view, [-1]), torch.log_softmax(x, -1), equal_nan=True
            )


# ---- Backward --------------------------------------------------------------------------------

Layout = Callable[[Tensor], Tensor]


def check_backward(x: Tensor, dim: tuple[int, ...], layout: Layout) -> set[str]:
    """The ratio rule for each gradient; the kernels that ran but for logsumexp."""
    problem = Problem(x=layout(x), dim=dim, scale=0.5)
    log_y = x.double() - x.double().logsumexp(dim, keepdim=True)
    dy = layout(randn(*x.shape, dtype=x.dtype, key=3))
    dlse = randn(*x.logsumexp(dim).shape, dtype=problem.acc, key=4)
    launched()
    for kind, y, lse in (("softmax", log_y.exp(), dlse), ("log_softmax", log_y, None)):
        case = Backward(kind, problem, layout(y.to(x.dtype)), dy, lse)
        case.check(case.run())
    names = launched()
    check_lse_backward(problem)
    return names


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("aligned", [True, False])
def test_backward(dtype: torch.dtype, aligned: bool) -> None:
    layout = (lambda t: t) if aligned else misalign
    for kernel, rows, n in shapes(dtype):
        assert kernel in check_backward(randn(rows, n, dtype=dtype), (1,), layout)


@pytest.mark.parametrize("dtype", FLOATS)
def test_backward_other_dims(dtype: torch.dtype) -> None:
    names = set()
    for shape, dim in [((45, 64), (0,)), ((45, 7), (0,)), ((5, 33), (0, 1))]:
        names |= check_backward(randn(*shape, dtype=dtype), dim, lambda t: t)
    assert {"softmax column backward", "softmax strided backward"} <= names


def check_backward_with_everything(rows: int, n: int, dtype: torch.dtype) -> set[str]:
    x = misalign(randn(rows, n, dtype=dtype))
    problem = Problem(
        x=x, mask=booleans(rows, n), lengths=integers(0, n, rows), zero_masked_rows=True
    )
    part = problem.takes_part()
    scores = x.double().masked_fill(~part, -torch.inf)
    log_y = (scores - scores.logsumexp(-1, keepdim=True)).nan_to_num(-torch.inf, neginf=-torch.inf)
    dy = randn(rows, n, dtype=dtype, key=5)
    dy[~part] = torch.nan  # what does not take part is never looked at
    launched()
    for kind, y in (("softmax", log_y.exp()), ("log_softmax", log_y)):
        case = Backward(kind, problem, misalign(y.to(dtype)), misalign(dy))
        case.check(case.run())
    names = launched()
    check_lse_backward(problem)
    return names


@pytest.mark.parametrize("dtype", FLOATS)
def test_backward_with_everything(dtype: torch.dtype) -> None:
    for _, rows, n in shapes(dtype):
        check_backward_with_everything(rows, n, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_backward_cluster(dtype: torch.dtype, hopper: None) -> None:
    n = vectors(dtype, 9000) | 1
    assert "softmax cluster" in check_backward(randn(2, n, dtype=dtype), (1,), misalign)
    assert "softmax cluster" in check_backward_with_everything(2, n, dtype)
