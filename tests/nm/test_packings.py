"""Each CPU kernel by itself, whichever of them this machine would choose: packings made by hand."""

import os

import pytest
import torch

import fastops
from fastops._lib import _native
from tests.nm.samples import DTYPES, PATTERNS, judge, randn, sparse
from tests.numerics import LAYOUTS, lay_out, same_bits

pytestmark = pytest.mark.skipif(
    os.environ.get("FASTOPS_SIMT") == "1", reason="the CPU's own kernels"
)
STREAM, PANELS, AMX_TILES, PAIRS, PAIR_PANELS = 1, 2, 6, 7, 8
IDS = {
    STREAM: "stream", PANELS: "panels", AMX_TILES: "amx", PAIRS: "pairs", PAIR_PANELS: "pair_panels"
}  # fmt: skip
# pair_panels packs every pair of a group of four for the one, neighbours for the other.
each_pairing = pytest.mark.parametrize("pattern", ["2:4", "3:8"])
OPS = torch.ops.fastops
BF16 = torch.bfloat16


def product(x, weight, kind, bias=None, activation=0):
    n, m = map(int, weight.pattern.split(":"))
    structure, source = OPS._nm_pack(weight.indices, n, m, weight.in_features, kind)
    weights = OPS._nm_gather(weight.values, source)
    out, features = weight.shape
    return OPS._nm_matmul(x, weights, structure, bias, out, features, n, m, kind, activation)


@pytest.fixture(params=IDS, ids=IDS.get)
def kind(request):
    """Skips what the CPU has not; the pairs of AVX-512 must be there where AVX-512 is."""
    _, weight = sparse(4, 8, "2:4", BF16)
    try:
        product(randn(1, 8, dtype=BF16), weight, request.param)
    except RuntimeError as error:
        assert "no such packing" in str(error)
        assert request.param == AMX_TILES or _native.active_isa() != "avx512"
        pytest.skip(f"not on this CPU: {error}")
    return request.param


@pytest.mark.isa
@pytest.mark.parametrize("pattern", [*PATTERNS, "1:3", "3:5", "7:9", "15:16", "1:32", "32:32"])
@pytest.mark.parametrize("out", [1, 37, 130])
def test_patterns_and_rows(kind, pattern, out):
    m = int(pattern.split(":")[1])
    w, weight = sparse(out, m * (100 // m), pattern, BF16)
    bias = randn(out, dtype=BF16, seed=2)
    for rows in (1, 2, 5, 8, 9, 16, 17, 31, 33, 70):
        x = randn(rows, w.shape[1], dtype=BF16)
        judge(product(x, weight, kind, bias), x, w, bias)


@pytest.mark.parametrize("shape", [(1100, 64, 40), (40, 2600, 600), (3, 5000, 70)])
@each_pairing
def test_more_than_one_piece(kind, pattern, shape):
    """Beyond the rows, inputs and outputs that go through a kernel together."""
    rows, features, out = shape
    w, weight = sparse(out, features, pattern, BF16)
    x = randn(rows, features, dtype=BF16)
    judge(product(x, weight, kind), x, w, None)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_inputs(dtype):
    """Sums over nothing: the bias alone."""
    weight = fastops.nm_compress(torch.empty(3, 0, dtype=dtype), "2:4")
    bias = randn(3, dtype=dtype)
    for rows in (1, 12, 70):
        x = torch.empty(rows, 0, dtype=dtype)
        assert torch.equal(fastops.nm_linear(x, weight, bias), bias.expand(rows, 3))
        assert not fastops.nm_linear(x, weight).any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [3, 40])
@each_pairing
def test_strides(kind, pattern, layout, rows):
    _, weight = sparse(33, 72, pattern, BF16)
    x = randn(rows, 72, dtype=BF16)
    assert same_bits(product(lay_out(x, layout), weight, kind), product(x, weight, kind))


@pytest.mark.isa
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:8", "4:8", "1:16", "3:32"])
def test_one_hot(kind, pattern):
    """Every place of a group, in each group: x picks the columns one by one."""
    m = int(pattern.split(":")[1])
    w, weight = sparse(50, 4 * m, pattern, BF16)
    y = product(torch.eye(4 * m, dtype=BF16), weight, kind)
    assert torch.equal(y, w.t())


@pytest.mark.parametrize("pattern", ["1:4", "1:8", "3:4", "1:3"])
def test_scratch_of_the_call_before_is_not_read(kind, pattern):
    """Where features end within a window, a unit or a pair."""
    m = int(pattern.split(":")[1])
    _, before = sparse(16, 320 // m * m, pattern, BF16)
    w, weight = sparse(16, 25 * m, pattern, BF16)
    for rows in (1, 5, 20):
        product(torch.full((rows, before.shape[1]), torch.nan, dtype=BF16), before, kind)
        x = randn(rows, 25 * m, dtype=BF16)
        judge(product(x, weight, kind), x, w, None)


def test_threads(kind):
    _, weight = sparse(700, 256, "2:4", BF16)
    before = torch.get_num_threads()
    try:
        for rows in (1, 100):
            x = randn(rows, 256, dtype=BF16)
            results = []
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                results.append(product(x, weight, kind))
            assert all(same_bits(r, results[0]) for r in results)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@each_pairing
def test_specials_in_weights(kind, pattern, value):
    w, weight = sparse(35, 32, pattern, BF16)
    x = randn(20, 32, dtype=BF16).abs() + 0.5
    plain = product(x, weight, kind)
    row, column = (w != 0).nonzero()[40]
    w[row, column] = value
    y = product(x, fastops.nm_compress(w, pattern), kind)
    assert not y[:, row].isfinite().any()
    y[:, row] = plain[:, row]
    assert same_bits(y, plain)


@pytest.mark.parametrize("pattern", ["2:4", "3:24", "15:16"])
def test_edited_indices_stay_in_bounds(kind, pattern):
    _, weight = sparse(20, 96, pattern, BF16)
    weight.indices.fill_(0xFF)
    x = randn(20, 96, dtype=BF16)
    bound = x.double().abs().sum() * weight.values.double().abs().sum()
    assert (product(x, weight, kind).double().abs() <= bound).all()


@pytest.mark.parametrize("kind", [AMX_TILES, PAIRS, PAIR_PANELS], ids=IDS.get)
def test_other_dtypes_are_refused(kind):
    _, weight = sparse(4, 8, "2:4")
    with pytest.raises(RuntimeError, match="no such packing"):
        product(randn(1, 8), weight, kind)
