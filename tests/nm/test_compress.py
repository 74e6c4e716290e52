"""nm_compress and the stored form: round trips, exact bytes, refusals."""

import itertools

import pytest
import torch

import fastops
from fastops.nm.reference import (
    nm_compress_reference,
    nm_decompress_reference,
    pack_indices,
    unpack_indices,
)
from tests.nm.samples import ALL_PATTERNS, DTYPES, randn, sparse
from tests.numerics import LAYOUTS, lay_out, same_bits

pytestmark = pytest.mark.isa


@pytest.mark.parametrize("pattern", [*ALL_PATTERNS, "3:32", "17:32", "32:32"])
def test_every_pattern_byte_for_byte(device, pattern):
    m = int(pattern.split(":")[1])
    w, weight = sparse(5, 7 * m, pattern, device=device)
    values, indices = nm_compress_reference(w, pattern)
    assert same_bits(weight.values, values) and torch.equal(weight.indices, indices)
    assert same_bits(weight.dense(), w)
    assert same_bits(nm_decompress_reference(values, indices, pattern, 7 * m), w)
    assert weight.shape == w.shape and weight.pattern == pattern


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dtypes_and_strides(device, dtype, layout):
    w, weight = sparse(6, 24, "2:4", dtype, device)
    again = fastops.nm_compress(lay_out(w, layout), "2:4")
    assert same_bits(again.values, weight.values) and torch.equal(again.indices, weight.indices)


def test_every_subset_of_a_group(device):
    """Groups with fewer kept than N: each subset of 8 places, zeros at the lowest free ones."""
    w = torch.zeros(256, 8, device=device)
    for bits in range(256):
        w[bits] = torch.tensor([float(bits >> i & 1) for i in range(8)])
    for n in range(1, 9):
        fits = w[w.sum(1) <= n]
        weight = fastops.nm_compress(fits, f"{n}:8")
        values, indices = nm_compress_reference(fits, f"{n}:8")
        assert torch.equal(weight.values, values) and torch.equal(weight.indices, indices)
        assert torch.equal(weight.dense(), fits)


def test_layout_by_hand():
    w = torch.tensor([[0.0, 5, 0, 7, 1, 2, 0, 0]])
    weight = fastops.nm_compress(w, "2:4")
    assert weight.values.tolist() == [[5, 7, 1, 2]]
    assert weight.indices.tolist() == [[1 | 3 << 2 | 0 << 4 | 1 << 6]]
    wide = torch.zeros(1, 32)
    wide[0, 17], wide[0, 31] = 3, 4
    assert fastops.nm_compress(wide, "2:32").indices.tolist() == [[17, 31]]


def test_negative_zero_is_zero_and_nan_is_not(device):
    w = torch.tensor([[1.0, -0.0, 2.0, -0.0], [float("nan"), 0, 0, 1]], device=device)
    weight = fastops.nm_compress(w, "2:4")
    assert weight.values[0].tolist() == [1, 2]
    assert weight.values[1].isnan().tolist() == [True, False]
    assert weight.columns().tolist() == [[0, 2], [0, 3]]


def test_mask_decides(device):
    w = randn(4, 16, device=device)
    mask = fastops.nm_mask(randn(4, 16, device=device, seed=5), "2:4")
    weight = fastops.nm_compress(w, "2:4", mask=mask)
    assert torch.equal(weight.dense(), torch.where(mask, w, 0))
    zero = fastops.nm_compress(torch.zeros_like(w), "2:4", mask=mask)
    assert torch.equal(zero.columns(), weight.columns())  # zeros under the mask are kept


@pytest.mark.parametrize("pattern", ["2:4", "1:2", "3:8", "2:16", "5:32"])
@pytest.mark.parametrize("mask", [False, True])
def test_the_first_offender_is_named(device, pattern, mask):
    n, m = map(int, pattern.split(":"))
    w, _ = sparse(40, 4 * m, pattern, device=device)
    for row, group in ((39, 0), (17, 3), (17, 2)):
        w[row, group * m : group * m + n + 1] = 1.0
        if not mask:
            w[row, group * m + n] = float("nan")
        given = {"mask": w != 0} if mask else {}
        what = "True" if mask else "nonzero"
        with pytest.raises(
            ValueError,
            match=f"at most {n} {what} in each group of {m}, got .* in row {row}, group {group} ",
        ):
            fastops.nm_compress(w, pattern, **given)


def test_refused_mask():
    w = torch.zeros(4, 8)
    with pytest.raises(TypeError, match="expected mask of dtype"):
        fastops.nm_compress(w, "2:4", mask=torch.zeros(4, 8))
    with pytest.raises(ValueError, match="expected mask of w's shape"):
        fastops.nm_compress(w, "2:4", mask=torch.zeros(4, 4, dtype=torch.bool))


@pytest.mark.parametrize("m", [2, 3, 4, 7, 16, 17, 32])
def test_index_packing_round_trip(m):
    places = torch.randint(m, (3, 13))
    assert torch.equal(unpack_indices(pack_indices(places, m), m, 13), places)


def test_broken_indices_are_refused(device):
    """Every pair of 2-bit indices: only rising ones pass."""
    values = torch.ones(1, 2, device=device)
    for first, second in itertools.product(range(4), repeat=2):
        indices = torch.tensor([[first | second << 2]], dtype=torch.uint8, device=device)
        if first < second:
            fastops.NMWeight(values, indices, "2:4", 4)
        else:
            with pytest.raises(ValueError, match=r"rise strictly below 4 .* row 0, group 0"):
                fastops.NMWeight(values, indices, "2:4", 4)
    with pytest.raises(ValueError, match=r"rise strictly below 12"):
        indices = torch.tensor([[13]], dtype=torch.uint8, device=device)
        fastops.NMWeight(torch.ones(1, 1, device=device), indices, "1:12", 12)


@pytest.mark.parametrize("pattern", ["2:4", "1:3", "2:12", "3:24"])
@pytest.mark.parametrize("rows", [1, 80])
def test_edited_indices_stay_in_bounds(device, pattern, rows):
    """Indices changed behind the weight's back: wrong answers are allowed, stray reads are not."""
    m = int(pattern.split(":")[1])
    _, weight = sparse(20, 4 * m, pattern, device=device)
    weight.indices.fill_(0xFF)
    x = randn(rows, 4 * m, device=device)
    bound = x.abs().sum() * weight.values.abs().sum()
    assert (fastops.nm_linear(x, weight).abs() <= bound).all()
    assert weight.dense().shape == weight.shape
