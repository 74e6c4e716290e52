"""sparsemax, entmax, softpick, StableMax and PLADIS against their float64 references."""

import math

import pytest
import torch

import fastops
from fastops.softmax.relatives.reference import entmax_reference
from tests.numerics import FLOATS, LAYOUTS, lay_out, same_bits
from tests.softmax.relatives import MAPS, Map
from tests.softmax.samples import booleans, integers, randn

pytestmark = pytest.mark.isa
SPARSE = {name: m for name, m in MAPS.items() if m.alpha is not None and m.alpha > 1}
NAMES = list(MAPS)


def close(got, wanted, dtype=None):
    """Equal to rounding, special values included: for what test_sizes does not judge."""
    dtype = dtype or got.dtype
    eps = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        got.double(), wanted.double(), rtol=eps, atol=max(eps, 2e-6 * (dtype != torch.float64)),
        equal_nan=True,
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 2, 3, 17, 64, 255, 1000, 4099])
def test_sizes(name, dtype, n, device):
    x = randn(3 if n > 500 else 7, n, dtype=dtype, device=device, spread=2)
    MAPS[name].check(MAPS[name].run(x), x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spread", [0, 1e-3, 0.1, 30, 1e4])
def test_spreads(name, spread, device):
    """From uniform rows, whose support is everything, to one-hot ones."""
    x = randn(4, 300, device=device, spread=spread)
    MAPS[name].check(MAPS[name].run(x), x)


@pytest.mark.parametrize("name", NAMES)
def test_long_rows(name, device):
    x = randn(2, 20_001, device=device)
    MAPS[name].check(MAPS[name].run(x), x)


@pytest.mark.parametrize("name", ["sparsemax", "entmax1.3", "pladis", "softpick", "log_stablemax"])
@pytest.mark.parametrize("dim", [0, 1, -1, (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dims_and_layouts(name, dim, layout, device):
    x = lay_out(randn(5, 6, 7, device=device), layout)
    got = MAPS[name].run(x, dim)
    assert got.stride() == torch.empty_like(x).stride()
    close(got, MAPS[name].exact(x, dim))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("masked_rows", ["nan", "zero"])
def test_who_takes_part(name, dtype, masked_rows, device):
    x = randn(4, 9, 37, dtype=dtype, device=device)
    arguments = {
        "mask": booleans(4, 1, 37, device=device),
        "lengths": integers(0, 37, 4, 9, device=device),
        "scale": randn(9, device=device).abs() + 0.1,
        "causal": "lower_right",
    }
    for dropped in (None, *arguments):
        given = {k: v for k, v in arguments.items() if k != dropped}
        m = MAPS[name]
        x_nan = x.masked_fill(~given["mask"], math.nan) if "mask" in given else x
        got = m.run(x_nan, **given, masked_rows=masked_rows)
        close(got, m.exact(x, **given, masked_rows=masked_rows), dtype)


@pytest.mark.parametrize("name", NAMES)
def test_strided_mask(name, device):
    x = randn(6, 40, device=device)
    mask = booleans(40, 6, device=device).t()
    close(MAPS[name].run(x, mask=mask), MAPS[name].exact(x, mask=mask))
    close(MAPS[name].run(x.t(), 0, mask=mask.t()), MAPS[name].exact(x.t(), 0, mask=mask.t()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("masked_rows", ["nan", "zero"])
@pytest.mark.parametrize("n", [33, 2500])
def test_specials(name, dtype, masked_rows, n, device):
    x = randn(8, n, dtype=dtype, device=device)
    x[0, 5] = math.nan
    x[1] = -math.inf
    x[2, 3:] = -math.inf
    x[3, 4] = math.inf
    x[4, 4], x[4, 5] = math.inf, math.nan
    x[5], x[5, 32] = -math.inf, math.nan
    x[6] = 0
    x[7] = torch.finfo(dtype).max / 4
    m = MAPS[name]
    got, wanted = m.run(x, masked_rows=masked_rows), m.exact(x, masked_rows=masked_rows)
    close(got[:7], wanted[:7])
    if name != "log_stablemax":  # the logarithms of great scores cancel in all digits that count
        close(got[7], wanted[7])


@pytest.mark.parametrize("name", NAMES)
def test_empty(name, device):
    for shape in ((0, 5), (3, 0), (0,)):
        assert MAPS[name].run(randn(*shape, device=device)).shape == shape
    close(MAPS[name].run(torch.tensor(0.5, device=device)), MAPS[name].exact(torch.tensor(0.5)))


def test_softpick_of_very_negative_rows(device):
    """exp(-max) overflows there if max is not clamped at 0."""
    x = randn(4, 50, device=device) - 200
    got = fastops.softpick(x)
    assert (got == 0).all()
    x[:, 7] = 1e-3
    close(fastops.softpick(x), MAPS["softpick"].exact(x))


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_simplex_and_support(name, dtype, device):
    """Sums to 1, and has the float64 support but for scores within rounding of the threshold."""
    x = randn(40, 513, dtype=dtype, device=device, spread=1.5)
    m: Map = SPARSE[name]
    y, wanted = m.run(x), m.exact(x)
    eps = torch.finfo(dtype).eps
    if name != "pladis":
        assert (y >= 0).all()
        assert ((y.double() > 0) != (wanted > 0)).logical_and(
            (y.double() - wanted).abs() > (64 * eps) ** (1 / (m.alpha - 1))
        ).sum() == 0
    assert ((y.double().sum(-1) - 1).abs() < 64 * eps).all()


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.999, 1.001, 2.5, 3.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_alphas(alpha, dtype, device):
    x = randn(6, 129, dtype=dtype, device=device)
    y, wanted = fastops.entmax(x, alpha), entmax_reference(x.double(), alpha)
    # Where y rises steeply, at the threshold for alpha > 2, rounding is magnified.
    loose = 20 * (torch.finfo(dtype).eps ** (1 / max(1, alpha - 1)))
    assert (y.double() - wanted).abs().max() < loose
    assert ((y.double().sum(-1) - 1).abs() < 200 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_alpha_per_row(dtype, device):
    x = randn(4, 3, 25, dtype=dtype, device=device)
    alpha = torch.tensor([1.0, 1.5, 2.0, 1.27], device=device)[:, None]
    for given in (alpha, alpha[..., None], alpha.expand(4, 3).double()):
        close(fastops.entmax(x, given), entmax_reference(x, given))
    rows = [fastops.entmax(x[i], a.item()) for i, a in enumerate(alpha)]
    close(fastops.entmax(x, alpha), torch.stack(rows))
    first = alpha.reshape(4, 1, 1)
    close(fastops.entmax(x, first, 1), entmax_reference(x, first, 1))


def test_entmax_package(device):
    """The package on PyPI as a witness that shares nothing with us."""
    entmax = pytest.importorskip("entmax")
    x = randn(20, 77, device=device, dtype=torch.float64)
    assert (fastops.sparsemax(x) - entmax.sparsemax(x)).abs().max() < 1e-14
    assert (fastops.entmax15(x) - entmax.entmax15(x)).abs().max() < 1e-14
    bisect = entmax.entmax_bisect(x, 1.3, n_iter=100)
    assert (fastops.entmax(x, 1.3) - bisect).abs().max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_depend_on_one_another(name, device):
    x = randn(50, 130, device=device)
    whole = MAPS[name].run(x)
    assert same_bits(whole, MAPS[name].run(x))
    assert same_bits(whole[17:18].contiguous(), MAPS[name].run(x[17:18].contiguous()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [250, 1003])
def test_more_than_the_caches(name, dtype, n, device):
    """Streamed past them, from rows that start anywhere in a line."""
    x = randn((1 << 24) // n, n, dtype=dtype, device=device, spread=2)
    assert same_bits(MAPS[name].run(x)[::999], MAPS[name].run(x[::999].contiguous()))
