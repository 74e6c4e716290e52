"""nm_mask and nm_prune: the order of the contract, ties, NaN, strides, scores."""

import pytest
import torch

import fastops
from fastops.nm.reference import nm_mask_reference, nm_prune_reference
from tests.nm.samples import ALL_PATTERNS, DTYPES, randn
from tests.numerics import LAYOUTS, lay_out, same_bits

pytestmark = pytest.mark.isa


@pytest.mark.parametrize("pattern", [*ALL_PATTERNS, "3:32", "17:32", "32:32"])
def test_every_pattern(device, pattern):
    m = int(pattern.split(":")[1])
    w = randn(5, 6 * m, device=device)
    assert torch.equal(fastops.nm_mask(w, pattern), nm_mask_reference(w, pattern))
    assert same_bits(fastops.nm_prune(w, pattern), nm_prune_reference(w, pattern))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["2:4", "3:8", "5:16"])
def test_ties_and_specials(device, dtype, pattern):
    """Few distinct values, so that most groups are decided by the rules for ties."""
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, float("inf"), -float("inf"), float("nan")])
    pick = torch.randint(8, (64, 48), generator=torch.Generator().manual_seed(0))
    w = values[pick].to(dtype).to(device)
    assert torch.equal(fastops.nm_mask(w, pattern), nm_mask_reference(w, pattern))
    scores = w.flip(0).contiguous()
    for score_dtype in DTYPES:
        given = scores.to(score_dtype)
        ours = fastops.nm_mask(w, pattern, scores=given)
        assert torch.equal(ours, nm_mask_reference(w, pattern, scores=given))


def test_the_rules_in_words(device):
    def kept(values, scores=None):
        w = torch.tensor([values], device=device)
        s = None if scores is None else torch.tensor([scores], device=device)
        return fastops.nm_mask(w, "2:4", scores=s)[0].nonzero().flatten().tolist()

    nan = float("nan")
    assert kept([1.0, -1.0, 1.0, 1.0]) == [0, 1]  # ties: lower index
    assert kept([0.0, -0.0, 0.0, 3.0]) == [0, 3]
    assert kept([9.0, nan, 8.0, nan]) == [1, 3]  # NaN is the largest
    assert kept([1.0, -2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 0.0]) == [1, 2]  # ties: larger |w|
    assert kept([1.0, 1.0, 1.0, 1.0], [-1.0, -2.0, 0.0, -0.0]) == [2, 3]  # scores have signs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(device, layout):
    w = randn(6, 24, device=device)
    laid = lay_out(w, layout)
    assert torch.equal(fastops.nm_prune(laid, "2:4"), nm_prune_reference(w, "2:4"))
    scores = lay_out(randn(6, 24, device=device, seed=3), layout)
    ours = fastops.nm_mask(laid, "2:4", scores=scores)
    assert torch.equal(ours, nm_mask_reference(w, "2:4", scores=scores))


def test_empty(device):
    assert fastops.nm_prune(torch.empty(0, 8, device=device), "2:4").shape == (0, 8)
    assert fastops.nm_mask(torch.empty(3, 0, device=device), "2:4").shape == (3, 0)


def test_gradient_is_that_of_the_kept(device):
    w = randn(4, 16, device=device).requires_grad_()
    fastops.nm_prune(w, "2:4").sum().backward()
    assert torch.equal(w.grad.bool(), fastops.nm_mask(w, "2:4"))


@pytest.mark.parametrize("function", [fastops.nm_mask, fastops.nm_prune, fastops.nm_compress])
def test_refusals(function):
    w = torch.zeros(4, 8)
    for bad in ("4:2", "0:4", "1:33", "2/4", "", "2:4:8"):
        with pytest.raises(ValueError, match="expected pattern"):
            function(w, bad)
    with pytest.raises(TypeError, match="expected pattern to be a string"):
        function(w, 4)
    with pytest.raises(ValueError, match=r"expected in_features divisible by 3 .* got 8"):
        function(w, "1:3")
    with pytest.raises(ValueError, match="expected w of shape"):
        function(torch.zeros(8), "2:4")
    with pytest.raises(TypeError, match="expected w of dtype"):
        function(w.double(), "2:4")
    with pytest.raises(TypeError, match="expected w to be a tensor"):
        function([[1.0]], "1:1")


def test_refused_scores():
    w = torch.zeros(4, 8)
    with pytest.raises(ValueError, match="expected scores of w's shape"):
        fastops.nm_prune(w, "2:4", scores=torch.zeros(8, 4))
    with pytest.raises(TypeError, match="expected scores of dtype"):
        fastops.nm_prune(w, "2:4", scores=torch.zeros(4, 8, dtype=torch.int32))
