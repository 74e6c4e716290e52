"""NaN, infinities, empty and tiny tensors: exactly as torch.softmax, log_softmax and logsumexp."""

import itertools
import math

import pytest
import torch

from tests.numerics import EMULATED, FLOATS
from tests.softmax.oracle import ALGORITHMS, KINDS, Problem, op
from tests.softmax.samples import randn

pytestmark = pytest.mark.isa

INF, NAN = math.inf, math.nan


def as_torch(kind: str, x: torch.Tensor, dim: int = -1, **args) -> None:
    """Same values, with NaN and infinities in the same places, as torch's function."""
    got, expected = op(kind)(x, [dim], **args), getattr(torch, kind)(x, dim)
    close = {"rtol": 4 * torch.finfo(x.dtype).eps, "atol": 4 * torch.finfo(x.dtype).eps}
    torch.testing.assert_close(got.to(x.dtype), expected, equal_nan=True, **close)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", [*KINDS, "logsumexp"])
def test_infinities_and_nan(kind, algorithm, dtype, device):
    """One special value, or two different ones, in every place of a short and a long row."""
    for n, dim in itertools.product((1, 2, 9, 33, 70, 1031), (-1, 0)):
        cases = [torch.full((n,), value) for value in (INF, -INF, NAN)]
        places = sorted({0, n // 3, n // 2, n - 2, n - 1} & set(range(n)))
        for place, value in itertools.product(places, (INF, -INF, NAN)):
            cases.append(torch.arange(n) / n)
            cases[-1][place] = value
            for other in (INF, -INF, NAN):
                cases.append(cases[-1].clone())
                cases[-1][n - 1 - place] = other
            cases.append(torch.full((n,), -INF))  # all but one excluded by value
            cases[-1][place] = 1.5
        x = torch.stack(cases).to(dtype).to(device)
        x = x.t().contiguous() if dim == 0 else x
        as_torch(kind, x, dim, algorithm=ALGORITHMS[algorithm])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_special_in_a_long_row(value, algorithm, dtype, device):
    """Near every border of a chunk, one special value spoils (or does not) the whole row."""
    n = 140_001 if EMULATED else 600_001
    borders = [place for place in (4095, 4096, 65_535, 65_536, 300_000, 524_288) if place < n]
    for place in (0, *borders, n - 1):
        x = randn(2, n, dtype=dtype, device=device)
        x[0, place] = value
        for kind in (*KINDS, "logsumexp"):
            got = op(kind)(x, [-1], algorithm=ALGORITHMS[algorithm])
            assert got[1].isfinite().all()
            if kind == "logsumexp":
                assert got[0].isfinite() if value == -INF else got[0].isnan() == math.isnan(value)
            elif value == -INF:
                assert got[0].isfinite().sum() == n - (kind == "log_softmax")
                assert got[0, place] == (0 if kind == "softmax" else -INF)
            else:
                assert got[0].isnan().all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_negative_infinity_up_to_a_border(algorithm, dtype, device):
    """A row that starts with whole chunks of -inf: merging their empty sum must not make NaN."""
    for n, start in (
        (100, 64),
        (5000, 4097),
        (40_000, 33_000),
        (100_001, 65_536),
    ):
        x = randn(3, n, dtype=dtype, device=device)
        x[0, :start] = -INF
        x[1, start:] = -INF
        Problem(x=x).check_kinds(algorithm=ALGORITHMS[algorithm])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_extremes(algorithm, dtype, device):
    """Values near overflow, denormals, and rows whose spread overflows: exp must be taken of a
    difference that is exact, not of two rounded products."""
    big, tiny = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    rows = [
        [big, big, big],
        [big, -big, 0],
        [-big, -big, -big],
        [big / 2, big / 2, big / 4],
        [-big, -INF, -big],
        [tiny, -tiny, 0],
        [tiny * 2**-3, tiny * 2**-2, 0],
        [88.7, 89, 700],
        [-88, -104, -745],
        [0, -87.5, -103.5],
        [10_000, 9_999, 9_990],
        [-10_000, -9_999, -9_990],
    ]
    for copies in (1, 5, 400):
        x = torch.tensor(rows, dtype=torch.float64).to(dtype).to(device).repeat(1, copies)
        for kind, dim in itertools.product(KINDS, (-1, 0)):
            problem = Problem(x=x if dim else x.t().contiguous(), dim=dim)
            problem.check_all(kind, algorithm=ALGORITHMS[algorithm])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape, dim", [((), 0), ((), -1), ((1,), 0), ((1, 1), 1), ((5, 1), 1), ((1, 5), 0)]
)
def test_one_element_rows(shape, dim, kind, dtype, device):
    """Exactly 1 and exactly 0, whatever the value."""
    for value in (3.25, -INF, INF, NAN, -40_000.0):
        x = torch.full(shape, value, dtype=dtype, device=device)
        got = op(kind)(x, [dim])
        assert got.shape == x.shape
        assert torch.equal(got.isnan(), getattr(torch, kind)(x, dim).isnan())
        if math.isfinite(value):
            assert (got == (1 if kind == "softmax" else 0)).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3), (2, 3, 0), (0, 0)])
def test_empty_tensors(shape, dtype, device):
    x = torch.empty(shape, dtype=dtype, device=device)
    dims = [*range(len(shape)), tuple(range(len(shape)))]
    for dim in dims:
        axes = [dim] if isinstance(dim, int) else list(dim)
        for kind in KINDS:
            out, lse = op(f"{kind}_lse")(x, axes)
            assert out.shape == x.shape and out.dtype == dtype
            assert torch.equal(lse, torch.logsumexp(x, axes).to(lse.dtype))
            assert op(kind).out(x, axes, out=torch.empty_like(x)).shape == x.shape
        for keepdim in (False, True):
            got = op("logsumexp")(x, axes, keepdim)
            assert torch.equal(got.to(dtype), torch.logsumexp(x, axes, keepdim))
        for backward in ("softmax_backward", "log_softmax_backward"):
            assert op(backward)(x, x, axes).shape == x.shape


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [0, 1, 2, (0, 2), (2, 0), (0, 1, 2), (-1,), (-3, 1)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_logsumexp_shape(keepdim, dim, dtype, device):
    x = randn(3, 5, 40, dtype=dtype, device=device)
    axes = [dim] if isinstance(dim, int) else list(dim)
    got = op("logsumexp")(x, axes, keepdim)
    expected = torch.logsumexp(x, axes, keepdim)
    assert got.shape == expected.shape and got.stride() == expected.stride()
    Problem(x=x, dim=dim).check_lse(got)
    out = op("logsumexp").out(x, axes, keepdim, out=torch.full_like(got, NAN))
    assert torch.equal(out, got)


@pytest.mark.parametrize("dtype", FLOATS)
def test_uniform_rows(dtype, device):
    """Equal scores: every element is the same number, and the sum of n ones is exact."""
    for n, value in itertools.product((2, 7, 64, 1000, 65_536), (0.0, -3.5, 60_000.0)):
        x = torch.full((3, n), value, dtype=dtype, device=device)
        out = op("softmax")(x, [-1])
        assert (out == out[0, 0]).all()
        torch.testing.assert_close(
            out[0, 0].double().item(), 1 / n, rtol=4 * torch.finfo(dtype).eps, atol=0
        )
