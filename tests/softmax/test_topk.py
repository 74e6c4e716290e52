"""softmax_topk against a stable sort of the float64 softmax."""

import math

import pytest
import torch

import fastops
from fastops.softmax.relatives.reference import softmax_topk_reference
from tests.numerics import FLOATS, LAYOUTS, Error, accumulator, assert_ratio, exact, lay_out
from tests.softmax.samples import booleans, integers, randn

pytestmark = pytest.mark.isa


def check(x, k, dim=-1, **given):
    """Indices exactly, values by the ratio rule against torch.softmax at the accumulation dtype."""
    values, indices = fastops.softmax_topk(x, k, dim, **given)
    wanted, order = softmax_topk_reference(x.double(), k, dim, **given)
    assert values.dtype == x.dtype and indices.dtype == torch.int64
    assert values.shape == indices.shape == wanted.shape
    assert torch.equal(indices, order)
    plain, _ = softmax_topk_reference(x.to(accumulator(x.dtype)), k, dim, **given)
    eps = torch.finfo(accumulator(x.dtype)).eps
    size = exact(wanted.abs() * 10)
    assert_ratio(values, exact(wanted), plain.to(x.dtype), size=size, luck=Error(eps, eps))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n, k", [(1, 1), (5, 2), (5, 5), (16, 16), (256, 8), (300, 299), (1000, 1),
                                  (1000, 8), (256, 64), (1000, 64), (5000, 1100)])  # fmt: skip
@pytest.mark.parametrize("renormalize", [False, True])
def test_sizes(dtype, n, k, renormalize, device):
    check(randn(3, n, dtype=dtype, device=device), k, renormalize=renormalize)


@pytest.mark.parametrize("n, k", [(40, 7), (256, 64), (3000, 30), (2500, 1500)])
def test_ties(n, k, device):
    """Equal scores come by rising index, however many there are."""
    check(integers(0, 3, 4, n, device=device).float(), k)
    check(torch.zeros(2, n, device=device), k)
    x = torch.zeros(2, n, device=device)
    x[:, ::2] = -0.0
    check(x, k)
    x[:, n // 2] = 1
    check(x, k)


@pytest.mark.parametrize("n, k", [(40, 1), (40, 40), (300, 8), (256, 64), (5000, 1), (5000, 8),
                                  (5000, 64)])  # fmt: skip
def test_maxima_anywhere(n, k, device):
    """Rows of one call with their maxima near 0 and far from it, and small values among the k."""
    offset = torch.tensor([0.0, -1e5, -500, -100, -45, -39, 5, 39, 45, 80, 95, 1e3, 1e30])
    offset = offset.to(device).unsqueeze(-1)
    check(randn(13, n, device=device) + offset, k)
    check(randn(13, n, device=device) * 40 + offset, k)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 15, 64, 100, 256, 300])
def test_first_in_each_place(dtype, n, device):
    """A row for each place of its greatest, again where an equal one follows, and rows that rise,
    fall or are all equal; then rows with a NaN in each place, between others."""
    x = randn(n, n, dtype=dtype, device=device)
    x.fill_diagonal_(50)
    twice = x.clone()
    twice[:, n - 1] = 50
    slope = torch.arange(n, device=device, dtype=dtype) / 8
    check(torch.cat([x, twice, slope[None], -slope[None], torch.full_like(x[:1], 1e-38)]), 1)
    x.fill_diagonal_(math.nan)
    check(torch.stack([x, twice], 1).reshape(2 * n, n), 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_dims_and_layouts(layout, dim, device):
    check(lay_out(randn(6, 7, 8, device=device), layout), 3, dim)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("masked_rows", ["nan", "zero"])
def test_who_takes_part(renormalize, masked_rows, device):
    x = randn(4, 9, 37, device=device)
    given = {
        "mask": booleans(4, 1, 37, device=device, share=0.3),
        "lengths": integers(0, 37, 4, 9, device=device),
        "scale": randn(9, device=device).abs() + 0.1,
        "causal": True,
    }
    for k in (1, 5, 37):
        check(x, k, renormalize=renormalize, masked_rows=masked_rows, **given)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [33, 64])
@pytest.mark.parametrize("masked_rows", ["nan", "zero"])
def test_specials(dtype, n, masked_rows, device):
    x = randn(6, n, dtype=dtype, device=device)
    x[0, 5] = math.nan
    x[1] = -math.inf
    x[2, 3:] = -math.inf
    x[3, 4] = math.inf
    x[4] = torch.finfo(dtype).max / 2
    for k in (1, 4, 33):
        check(x, k, masked_rows=masked_rows)


def test_values_are_those_of_torch(device):
    x = randn(9, 777, device=device)
    values, indices = fastops.softmax_topk(x, 20)
    wanted = torch.softmax(x, -1).topk(20)
    assert torch.equal(indices, wanted.indices)
    torch.testing.assert_close(values, wanted.values, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 8, 64, 128_256])
def test_vocabulary(dtype, k, device):
    """Rows of a language model's logits; in bf16 with many ties."""
    check(randn(2, 128_256, dtype=dtype, device=device), k)


def test_none_chosen(device):
    values, indices = fastops.softmax_topk(randn(3, 5, device=device), 0)
    assert values.shape == indices.shape == (3, 0)
    assert fastops.softmax_topk(randn(0, 5, device=device), 2)[0].shape == (0, 2)
    value, index = fastops.softmax_topk(torch.tensor(2.0, device=device), 1)
    assert value.shape == () and value == 1 and index == 0
    with pytest.raises(ValueError, match=r"expected k in \[1, 1\] \(x of 0 dims\), got 0"):
        fastops.softmax_topk(torch.tensor(2.0, device=device), 0)
    with pytest.raises(RuntimeError, match=r"expected k in \[1, 1\], got 0"):
        torch.ops.fastops.softmax_topk(torch.tensor(2.0, device=device), 0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("dim", [-1, 0])
def test_gradient(dtype, renormalize, dim, device):
    x = randn(40, 50, dtype=dtype, device=device).requires_grad_()
    mask = booleans(40, 50, device=device, share=0.8)
    given = {"mask": mask, "renormalize": renormalize, "scale": 0.7, "masked_rows": "zero"}
    values, _ = fastops.softmax_topk(x, 6, dim, **given)
    grad = randn(*values.shape, dtype=dtype, device=device, key=1)
    (dx,) = torch.autograd.grad(values, x, grad)
    wide = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(
        softmax_topk_reference(wide, 6, dim, **given)[0], wide, grad.double()
    )
    scale = wanted.abs().amax(dim, keepdim=True)
    eps = torch.finfo(dtype).eps + 16 * torch.finfo(accumulator(dtype)).eps
    assert ((dx.double() - wanted).abs() <= 2 * eps * scale).all()
    assert (dx[~mask] == 0).all()


def test_edited_indices_stay_in_the_row(device):
    """Written by hand they may be anything; out of the row they count as without gradient."""
    x, grad = randn(4, 50, device=device), randn(4, 6, device=device, key=1)
    _, indices, lse = torch.ops.fastops.softmax_topk(x, 6)
    backward = torch.ops.fastops.softmax_topk_backward
    outside = torch.tensor([-1, 50, -(2**62), 2**62], device=device)
    edited, muted = indices.clone(), grad.clone()
    edited[:, 2], muted[:, 2] = outside, 0
    torch.testing.assert_close(backward(grad, edited, x, lse), backward(muted, indices, x, lse))


@pytest.mark.parametrize("renormalize", [False, True])
def test_gradcheck(renormalize):
    x = randn(3, 7, dtype=torch.float64).requires_grad_()
    scale = (randn(3, dtype=torch.float64).abs() + 0.5).requires_grad_()

    def values(x, scale):
        return fastops.softmax_topk(x, 3, scale=scale, renormalize=renormalize)[0]

    assert torch.autograd.gradcheck(values, (x, scale))
    assert torch.autograd.gradgradcheck(values, (x, scale))
