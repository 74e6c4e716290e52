"""nm_linear against the dense product in float64: patterns, dtypes, rows, strides, specials."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import fastops
from fastops.nm.reference import nm_linear_reference
from tests.nm.samples import ALL_PATTERNS, DTYPES, PATTERNS, judge, randn, sparse
from tests.numerics import CARRIED, EMULATED, LAYOUTS, lay_out, same_bits

pytestmark = pytest.mark.isa
ROWS = [1, 2, 3, 4, 7, 8, 9, 16, 31, 63, 64, 65, 129, 200]
ACTIVATIONS = [None, "relu", "gelu", "silu"]
INF, NAN = math.inf, math.nan
MOST_WAYS = 100 if EMULATED else 1000


@pytest.mark.parametrize("pattern", [*ALL_PATTERNS, "3:32", "17:32", "32:32"])
@pytest.mark.parametrize("rows", [2, 70])
def test_every_pattern(device, pattern, rows):
    m = int(pattern.split(":")[1])
    for dtype in DTYPES:
        w, weight = sparse(19, m * (64 // m + 1), pattern, dtype, device)
        x = randn(rows, w.shape[1], dtype=dtype, device=device)
        judge(fastops.nm_linear(x, weight), x, w, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows(device, dtype, pattern):
    m = int(pattern.split(":")[1])
    w, weight = sparse(37, m * (200 // m), pattern, dtype, device)
    bias = randn(37, dtype=dtype, device=device, seed=2)
    for rows in ROWS:
        x = randn(rows, w.shape[1], dtype=dtype, device=device)
        judge(fastops.nm_linear(x, weight, bias), x, w, bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "features"), [(1, 4), (300, 1024), (515, 132), (16, 4), (257, 64)])
@pytest.mark.parametrize("rows", [1, 5, 12, 140])
def test_shapes(device, dtype, out, features, rows):
    w, weight = sparse(out, features, "2:4", dtype, device)
    x = randn(rows, features, dtype=dtype, device=device)
    judge(fastops.nm_linear(x, weight), x, w, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [3, 40])
def test_activations(device, dtype, activation, rows):
    w, weight = sparse(50, 64, "2:4", dtype, device)
    x = randn(rows, 64, dtype=dtype, device=device)
    for bias in (None, randn(50, dtype=dtype, device=device, seed=2)):
        judge(fastops.nm_linear(x, weight, bias, activation), x, w, bias, activation)


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
@pytest.mark.parametrize("rows", [1, 16])
def test_activations_of_extremes(device, activation, rows):
    """The activation of single values, far out and special ones, as torch has them."""
    values = [-INF, -1e30, -200.0, -30.0, -6.0, -0.0, 0.0, 1e-30, 30.0, 1e30, INF, NAN]
    x = torch.cat([torch.tensor(values), torch.linspace(-10, 10, 501)]).reshape(-1, 1).to(device)
    weight = fastops.nm_compress(torch.ones(1, 1, device=device), "1:1")
    x = x[: rows * (len(x) // rows)] if rows > 1 else x
    ours = torch.cat([fastops.nm_linear(part, weight, None, activation) for part in x.split(rows)])
    theirs = getattr(F, activation)(x.double()).float()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 7, 31, 63])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(device, dtype, rows, layout):
    w, weight = sparse(33, 72, "2:8", dtype, device)
    x = randn(rows, 72, dtype=dtype, device=device)
    same = fastops.nm_linear(x, weight)
    assert same_bits(fastops.nm_linear(lay_out(x, layout), weight), same)
    judge(same, x, w, None)


def test_leading_dims(device):
    w, weight = sparse(5, 16, "2:4", device=device)
    for shape in ((16,), (3, 16), (2, 3, 16), (0, 16), (2, 0, 3, 16), (1, 1, 16)):
        x = torch.randn(shape, device=device)
        y = fastops.nm_linear(x, weight)
        assert y.shape == (*shape[:-1], 5) and y.is_contiguous()
        torch.testing.assert_close(y, F.linear(x, w))
    permuted = torch.randn(4, 5, 6, 16, device=device).permute(2, 0, 1, 3)
    torch.testing.assert_close(fastops.nm_linear(permuted, weight), F.linear(permuted, w))
    expanded = torch.randn(1, 6, 16, device=device).expand(5, 6, 16)
    torch.testing.assert_close(fastops.nm_linear(expanded, weight), F.linear(expanded, w))


def test_equals_dense_product_of_the_pruned_weight(device):
    for pattern, rows in itertools.product(PATTERNS, (1, 30)):
        m = int(pattern.split(":")[1])
        w, x = randn(24, 4 * m, device=device), randn(rows, 4 * m, device=device)
        pruned = fastops.nm_prune(w, pattern)
        ours = fastops.nm_linear(x, fastops.nm_compress(pruned, pattern))
        torch.testing.assert_close(ours, F.linear(x, pruned))
        torch.testing.assert_close(ours, nm_linear_reference(x, pruned))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "2:8", "1:16", "3:32"])
@pytest.mark.parametrize("repeat", [1, 9])
def test_every_group_pattern_one_hot(device, dtype, pattern, repeat):
    """Each way to choose N of M puts known weights on known columns; x picks them one by one."""
    n, m = map(int, pattern.split(":"))
    ways = list(itertools.islice(itertools.combinations(range(m), n), MOST_WAYS))
    w = torch.zeros(len(ways), 3 * m)
    for row, way in enumerate(ways):
        for place, column in enumerate(way):
            w[row, m + column] = row % 100 + 1 + place / 8
            w[row, 2 * m + column] = -(row % 50) - 1
    w = w.to(dtype).to(device)
    weight = fastops.nm_compress(w, pattern)
    x = torch.eye(3 * m, dtype=dtype, device=device).repeat(repeat, 1)
    for part in (1, len(x)):  # one row at a time, and all together
        y = torch.cat([fastops.nm_linear(rows, weight) for rows in x.split(part)])
        assert torch.equal(y, w.t().repeat(repeat, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["2:4", "1:8", "4:8", "3:32"])
@pytest.mark.parametrize("rows", [1, 6, 64, 70])
@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_specials_reach_exactly_their_outputs(device, dtype, pattern, rows, value):
    m = int(pattern.split(":")[1])
    w, _ = sparse(35, 4 * m, pattern, dtype, device)
    x = randn(rows, 4 * m, dtype=dtype, device=device).abs() + 0.5
    plain = fastops.nm_linear(x, fastops.nm_compress(w, pattern))
    kept = (w != 0).nonzero()
    for row, column in (kept[0], kept[len(kept) // 2], kept[-1]):
        special = w.clone()
        special[row, column] = value
        y = fastops.nm_linear(x, fastops.nm_compress(special, pattern))
        assert not y[:, row].isfinite().any()
        y[:, row] = plain[:, row]
        assert same_bits(y, plain)


@pytest.mark.parametrize("rows", [1, 6, 70])
def test_special_activations_reach_where_they_are_kept(device, rows):
    """On the CPU an activation is read only where it is kept. Tensor cores multiply zeros as well,
    so there, as in a dense product, the rest of its own row may be NaN, and no other row."""
    _, weight = sparse(35, 32, "2:4", device=device)
    x = randn(rows, 32, device=device)
    x[0, 5] = INF
    y = fastops.nm_linear(x, weight)
    kept = torch.zeros(35, dtype=torch.bool, device=device)
    kept[(weight.columns() == 5).any(1)] = True
    reached = ~y[0].isfinite()
    assert reached[kept].all() and y[1:].isfinite().all()
    if device == "cpu" and not EMULATED and not CARRIED:
        assert torch.equal(reached, kept)


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_same_bits_on_any_thread_count(rows):
    _, weight = sparse(700, 256, "2:4")
    x = randn(rows, 256)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(fastops.nm_linear(x, weight))
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(r, results[0]) for r in results)


def test_refusals(device):
    _, weight = sparse(6, 8, "2:4", device=device)
    x = torch.zeros(2, 8, device=device)
    linear = fastops.nm_linear
    with pytest.raises(
        ValueError,
        match=r"fastops.nm_linear: expected x.shape\[-1\] == 8 \(in_features of weight\), got 7",
    ):
        linear(x[:, :7], weight)
    with pytest.raises(ValueError, match="got a tensor of 0 dims"):
        linear(torch.zeros((), device=device), weight)
    with pytest.raises(TypeError, match=r"expected weight to be a fastops\.NMWeight, got Tensor"):
        linear(x, torch.zeros(6, 8))
    with pytest.raises(TypeError, match=r"expected x of dtype torch\.float32 as weight is"):
        linear(x.half(), weight)
    with pytest.raises(TypeError, match="expected x to be a tensor"):
        linear([1.0], weight)
    with pytest.raises(ValueError, match=r"expected bias of shape \(6,\), got \(8,\)"):
        linear(x, weight, torch.zeros(8, device=device))
    with pytest.raises(TypeError, match="expected bias of dtype"):
        linear(x, weight, torch.zeros(6, device=device).half())
    with pytest.raises(ValueError, match="expected activation to be 'relu', 'gelu', 'silu'"):
        linear(x, weight, None, "tanh")
    with pytest.raises(TypeError, match="expected activation to be a string"):
        linear(x, weight, None, 3)
