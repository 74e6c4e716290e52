"""Long rows, offsets beyond 2**31 elements, and inputs that end where the memory does."""

import ctypes
import itertools
import math
import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.numerics import FLOATS, exact, same_bits
from tests.softmax.oracle import ALGORITHMS, KINDS, Problem, op
from tests.softmax.samples import booleans, randn

ROOT = Path(__file__).parents[2]
FAR = 2**31 + 12_345  # an element offset no 32-bit index reaches


# ---- long rows ----------------------------------------------------------------------


def relative_error(got: Tensor, reference) -> float:
    """Sum of errors over sum of values: drift of the whole row, as a wrong sum causes."""
    return float(abs(exact(got) - reference).sum() / abs(reference).sum())


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_rows_beyond_any_scratch(masked, dtype, device):
    """Rows read more than once because their exponentials fit nowhere."""
    x = randn(1, 1_300_003, dtype=dtype, device=device, spread=3)
    problem = Problem(x=x, mask=booleans(1, 1_300_003, device=device) if masked else None)
    for algorithm in ALGORITHMS.values():
        problem.check_kinds(algorithm=algorithm)


@pytest.mark.isa
def test_row_of_16m(device):
    """A running float32 sum drifts by 1e-4 here, as torch's does; sums in chunks do not."""
    x = randn(1, 16_777_259, device=device)
    problem = Problem(x=x)
    reference = problem.exact("softmax")
    peer = relative_error(problem.peer("softmax"), reference)
    for name, algorithm in ALGORITHMS.items():
        out, lse = op("softmax_lse")(x, [-1], algorithm=algorithm)
        ours = relative_error(out, reference)
        assert ours <= min(peer, 3e-7), (name, ours, peer)
        assert abs(lse.double().item() - problem.exact("logsumexp").item()) <= 4e-6, name


@pytest.mark.large
@pytest.mark.parametrize("kind", KINDS)
def test_backward_of_16m(kind, device):
    """The dot product over the row is a long sum as well: against dy = 1 it must come out as 1 (or
    n), where gradients cancel."""
    n = 16_777_259
    y = op(kind)(randn(1, n, device=device), [-1])
    dy = randn(1, n, device=device, key=1)
    dx = op(f"{kind}_backward")(dy, y, [-1])
    yd, dyd = y.double(), dy.double()
    p = yd if kind == "softmax" else yd.exp()
    reference = p * (dyd - (p * dyd).sum()) if kind == "softmax" else dyd - p * dyd.sum()
    assert relative_error(dx, exact(reference)) <= 1e-6


# ---- more than 2**31 elements -------------------------------------------------------------------


@pytest.mark.large
def test_more_than_2_31_elements_in_a_row(device):
    """One row of 2**31 + 12345 equal elements, expanded from one: lse = x + log(n)."""
    x = torch.full((1,), 1.5, dtype=torch.bfloat16, device=device).expand(FAR)
    assert math.isclose(op("logsumexp")(x, [0]).item(), 1.5 + math.log(FAR), rel_tol=1e-6)


@pytest.mark.large
def test_more_than_2_31_elements_in_all(device):
    """Rows that differ, 2**31 elements of them: the row at element 2**31 is not another one."""
    rows, n = 262_147, 8192
    base = torch.arange(rows, device=device).remainder(1021).float()[:, None]
    lse = op("logsumexp")(base.expand(rows, n), [-1])
    torch.testing.assert_close(lse, base[:, 0] + math.log(n))


def sparse_storage(elements: int, dtype: torch.dtype) -> Tensor:
    """Address space that takes memory only where it is touched."""
    width = torch.empty(0, dtype=dtype).element_size()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return torch.frombuffer(mmap.mmap(-1, elements * width, flags=flags), dtype=dtype)


@pytest.mark.isa
@pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="needs POSIX mmap")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_strides_beyond_2_31(kind, dtype):
    """x and out as three slices 2**30 elements apart, so that the last begins beyond 2**31: a
    32-bit offset (of elements or bytes) would land elsewhere, in a zero page or in none."""
    step = 2**30 + 7
    source, target = (sparse_storage(2 * step + 4096, dtype) for _ in range(2))
    values = randn(3, 700, dtype=dtype)
    x = source.as_strided((3, 700), (step, 1), 5)
    out = target.as_strided((3, 700), (step, 1), 9)
    x.copy_(values)
    for dim in ([1], [0], [0, 1]):
        expected = op(kind)(values, dim)
        for x_, values_ in ((x, values), (x.t(), values.t())):
            dims = dim if x_ is x else [1 - dim[0]] if len(dim) == 1 else dim
            got = op(kind).out(x_, dims, out=out if x_ is x else out.t())
            Problem(x=values_, dim=tuple(dims)).check(kind, got)
        dy = randn(3, 700, dtype=dtype, key=1)
        want = op(f"{kind}_backward")(dy, expected, dim)
        out.copy_(expected)
        x.copy_(dy)
        got = op(f"{kind}_backward").out(x, out, dim, out=out)
        tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
        torch.testing.assert_close(got, want, **tolerance)
        x.copy_(values)


# ---- the end of a page --------------------------------------------------------------------------


@pytest.mark.isa
@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
@pytest.mark.parametrize("dtype", FLOATS)
def test_page_ends(dtype):
    """Tensors that end at the last byte, and begin at the first, of memory that may be touched: a
    stray read of one byte kills the child process."""
    script = f"import torch; from {__name__} import at_page_ends; at_page_ends({dtype})"
    command = [sys.executable, "-c", script]
    child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert child.returncode == 0, f"exit status {child.returncode}\n{child.stderr[-2000:]}"


def fenced(values: Tensor, at_end: bool, keep: list) -> Tensor:
    """A copy of `values` in pages of its own, between pages that may not be touched."""
    page = mmap.PAGESIZE
    size = values.numel() * values.element_size()
    inner = -(-size // page) * page
    area = mmap.mmap(-1, inner + 2 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (base, base + page + inner):
        assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    keep.append(area)
    start = page + (inner - size if at_end else 0)
    flat = torch.frombuffer(area, dtype=values.dtype, count=values.numel(), offset=start)
    return flat.view(values.shape).copy_(values)


def at_page_ends(dtype: torch.dtype) -> None:
    keep = []
    for n, at_end in itertools.product((1, 3, 7, 16, 31, 33, 65, 130, 1031), (False, True)):
        values, keys = randn(5, n, dtype=dtype), torch.arange(n)
        for x, dim in ((values, -1), (values.t().contiguous(), 0)):
            rows = 5
            args = {
                "mask": fenced(keys.remainder(3).ne(1).expand(5, n).contiguous(), at_end, keep),
                "bias": fenced(values, at_end, keep),
                "lengths": fenced(torch.full((rows,), n, dtype=torch.int32), at_end, keep),
            }
            if dim == 0:
                args["mask"] = fenced(args["mask"].t().contiguous(), at_end, keep)
                args["bias"] = fenced(x, at_end, keep)
            x, y, dx = (fenced(t, at_end, keep) for t in (x, x, x))
            for kind, algorithm in itertools.product(KINDS, ALGORITHMS.values()):
                for given in ({}, args):
                    expected = op(kind)(x.clone(), [dim], algorithm=algorithm, **given)
                    op(kind).out(x, [dim], algorithm=algorithm, **given, out=y)
                    # A row that starts at another alignment may be summed in another order.
                    eps = 16 * torch.finfo(dtype).eps
                    tolerance = {"rtol": eps, "atol": eps if kind == "log_softmax" else 1e-30}
                    torch.testing.assert_close(y, expected, **tolerance)
                    given = {k: v for k, v in given.items() if k != "bias"}
                    op(f"{kind}_backward").out(x, y, [dim], **given, out=dx)
            for given in ({}, args):
                lse = op("logsumexp")(x, [dim], **given)
                op("logsumexp_backward").out(lse, x, lse, [dim], **given, out=dx)
        keep.clear()


@pytest.mark.isa
@pytest.mark.parametrize("dtype", FLOATS)
def test_outputs_larger_than_the_cache(dtype, device):
    """Past the cache, outputs may be streamed around it: row starts at every alignment, so that
    heads and tails are not lost."""
    x = randn(
        4001, 4001 * 4 // torch.empty(0, dtype=dtype).element_size(), dtype=dtype, device=device
    )
    expected = torch.stack([op("softmax")(row, [-1]) for row in x[::500]])
    out = op("softmax")(x, [-1])
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0.0}
    torch.testing.assert_close(out[::500], expected, **tolerance)
    total = out.sum(-1, dtype=torch.float64)
    torch.testing.assert_close(
        total, torch.ones_like(total), rtol=8 * torch.finfo(dtype).eps, atol=0
    )
    dx = op("softmax_backward")(x, out, [-1])
    rows = torch.stack(
        [op("softmax_backward")(a, b, [-1]) for a, b in zip(x[::500], out[::500], strict=True)]
    )
    torch.testing.assert_close(
        dx[::500], rows, **tolerance | {"atol": 1e-6 if dtype.itemsize > 2 else 1e-4}
    )
    assert same_bits(out, op("softmax").out(x, [-1], out=x))  # in place, the last use of x


@pytest.mark.isa
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [33, 64, 128, 197, 512, 577, 2048])
def test_short_rows_larger_than_the_cache(n, dtype, device):
    """Whole lines of results may hold the end of one row and the start of the next."""
    x = randn((9 << 20) // (n * dtype.itemsize) + 5, n, dtype=dtype, device=device)
    x[40] = -torch.inf
    x[41, n // 2] = torch.nan
    x[-1, 0] = 1e4  # a row of its own, with nothing behind it
    for kind in KINDS:
        out, lse = op(f"{kind}_lse")(x, [-1])
        for rows in (slice(0, 50), slice(-50, None)):
            few, few_lse = op(f"{kind}_lse")(x[rows].clone(), [-1])
            # On CUDA the order of a row's sum follows its address.
            tolerance = {"rtol": 16 * torch.finfo(dtype).eps, "atol": 0.0, "equal_nan": True}
            torch.testing.assert_close(out[rows], few, **tolerance)
            torch.testing.assert_close(lse[rows], few_lse, **tolerance)
        assert out[40:42].isnan().all() and not out[:40].isnan().any()
        assert not out[42:].isnan().any()
        dy = randn(*x.shape, dtype=dtype, device=device)
        dx = op(f"{kind}_backward")(dy, out, [-1])
        few = op(f"{kind}_backward")(dy[-50:].clone(), out[-50:].clone(), [-1])
        eps = 16 * torch.finfo(dtype).eps
        close = {"rtol": eps, "atol": eps * dy[-50:].abs().amax().item()}
        torch.testing.assert_close(dx[-50:], few, **close)
        off_lines = torch.empty(dx.numel() + 1, dtype=dtype, device=device)[1:].view(dx.shape)
        op(f"{kind}_backward").out(dy, out, [-1], out=off_lines)
        torch.testing.assert_close(off_lines[-50:], few, **close)
        assert same_bits(dx, op(f"{kind}_backward").out(dy, out, [-1], out=dy))
        out = op(kind)(x, [-1])  # a half's may be another without lse
        copy = x.clone()
        assert same_bits(out, op(kind).out(copy, [-1], out=copy))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(5, 33, 32_768), (5, 150, 6432), (9, 300, 2001), (3, 7000, 288)])
def test_columns_larger_than_the_cache(shape, dtype, device):
    """Whole lines of neighbouring rows may be streamed around the cache too."""
    x = randn(*shape, dtype=dtype, device=device)
    out = op("softmax")(x, [1])
    expected = torch.stack([op("softmax")(a, [0]) for a in x])
    torch.testing.assert_close(out, expected, rtol=4 * torch.finfo(dtype).eps, atol=0)
    ones = torch.ones(shape[0], shape[2], dtype=torch.float64, device=device)
    total = out.sum(1, dtype=torch.float64)
    torch.testing.assert_close(total, ones, rtol=8 * torch.finfo(dtype).eps, atol=0)
    assert same_bits(out, op("softmax").out(x, [1], out=x))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows, n", [(7, 4096), (6, 5000), (3, 32768), (1, 32768), (5, 200_003)])
def test_backward_rows_read_in_two_places(dtype, rows, n, device):
    """Each row's gradient is what it is alone, wherever a thread reads it beside another."""
    dy = randn(rows, n, dtype=dtype, device=device)
    for kind in KINDS:
        out = op(kind)(randn(rows, n, dtype=dtype, device=device), [-1])
        dx = op(f"{kind}_backward")(dy, out, [-1])
        alone = [op(f"{kind}_backward")(dy[i : i + 1], out[i : i + 1], [-1]) for i in range(rows)]
        eps = 16 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            dx, torch.cat(alone), rtol=eps, atol=eps * dx.abs().amax().item()
        )
        assert dx.isfinite().all() and dx.count_nonzero() > dx.numel() // 4


@pytest.mark.isa
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("gaps", [(3, 0), (64, 3)])
def test_masked_rows_streamed_between_gaps(dtype, gaps, device):
    """Rows of whole lines of which one dim or the other does not begin on one."""
    n, outer = 1024, 4
    inner = (9 << 20) // (outer * n * dtype.itemsize)
    row = n + gaps[1]
    step = -(-inner * row // 64) * 64 + gaps[0]
    dx = torch.empty(outer * step, dtype=dtype, device=device)
    dx = dx.as_strided((outer, inner, n), (step, row, 1))
    y, dy = (randn(outer, inner, n, dtype=dtype, device=device) for _ in range(2))
    mask = torch.arange(n, device=device) % 3 > 0
    for kind in KINDS:
        backward = op(f"{kind}_backward")
        backward.out(dy, y, [-1], mask=mask, out=dx)
        for rows in (slice(0, 3), slice(-3, None)):
            few = backward(dy[:, rows].clone(), y[:, rows].clone(), [-1], mask=mask)
            eps = 16 * torch.finfo(dtype).eps
            close = {"rtol": eps, "atol": eps * few.abs().amax().item()}
            torch.testing.assert_close(dx[:, rows], few, **close)
