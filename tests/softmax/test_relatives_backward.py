"""Gradients of the relatives: kernels against float64 formulas and autograd through the references,
derivatives by finite differences, and the losses."""

import math

import pytest
import torch

import fastops
from fastops.softmax.relatives import formulas
from fastops.softmax.relatives.reference import (
    entmax_loss_reference,
    entmax_reference,
    pladis_softmax_reference,
)
from tests.numerics import FLOATS, LAYOUTS, accumulator, lay_out, same_bits
from tests.softmax.relatives import MAPS
from tests.softmax.samples import booleans, integers, randn

SCORE = {"mask": None, "lengths": None, "causal": 0, "scale": 1.0, "row_scale": None}
NAMES = list(MAPS)


def backward(name):
    """(backward op, its formula, their arguments) of a map."""
    if MAPS[name].alpha is not None and name != "pladis":
        more = {"alpha": MAPS[name].alpha, "row_alpha": None}
        return "entmax_backward", formulas.entmax_backward, more
    if name == "pladis":
        return "pladis_softmax_backward", formulas.pladis_softmax_backward, {
            "lam": 1.7, "alpha": 1.5}  # fmt: skip
    if name == "softpick":
        return "softpick_backward", formulas.softpick_backward, {"eps": 1e-8}
    log = name == "log_stablemax"
    return f"{name}_backward", lambda *a, **k: formulas.stablemax_backward(*a, log=log, **k), {}


@pytest.mark.isa
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 5, 64, 700])
def test_kernel_against_formula(name, dtype, n, device):
    x = randn(9, n, dtype=dtype, device=device, spread=1.5)
    grad = randn(9, n, dtype=dtype, device=device, key=1)
    op, formula, more = backward(name)
    saved = MAPS[name].run(x) if op == "entmax_backward" else x
    dx = getattr(torch.ops.fastops, op)(grad, saved, [-1], **more)
    wanted = formula(grad.double(), saved.double(), (-1,), dtype=None, **more, **SCORE)
    acc = accumulator(dtype)
    peer = formula(grad.to(acc), saved.to(acc), (-1,), dtype=None, **more, **SCORE).to(dtype)
    # What cancels counts too: all of it in a row of one.
    size = wanted.abs().amax(-1, keepdim=True) + grad.double().abs().amax(-1, keepdim=True) / n
    error = ((dx.double() - wanted).abs() / size).max()
    allowed = 2 * ((peer.double() - wanted).abs() / size).max()
    assert error <= allowed + torch.finfo(dtype).eps / 2 + 32 * torch.finfo(acc).eps


@pytest.mark.isa
@pytest.mark.parametrize("name", ["sparsemax", "entmax1.3", "pladis", "softpick", "log_stablemax"])
@pytest.mark.parametrize("dim", [0, -1, (0, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_of_layouts(name, dim, layout, device):
    x = lay_out(randn(5, 6, 7, device=device), layout).requires_grad_()
    grad = lay_out(randn(5, 6, 7, device=device, key=1), layout)
    (dx,) = torch.autograd.grad(MAPS[name].run(x, dim), x, grad)
    wide = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(MAPS[name].exact(wide, dim), wide, grad.double())
    torch.testing.assert_close(dx.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.isa
@pytest.mark.parametrize("name", NAMES)
def test_gradient_where_some_take_part(name, device):
    x = randn(4, 9, 37, device=device).requires_grad_()
    given = {
        "mask": booleans(4, 1, 37, device=device),
        "lengths": integers(0, 37, 4, 9, device=device),
        "causal": "lower_right",
        "masked_rows": "zero",
    }
    scale = (randn(9, device=device).abs() + 0.1).requires_grad_()
    grad = randn(4, 9, 37, device=device, key=1)
    y = MAPS[name].run(x, **given, scale=scale)
    dx, dscale = torch.autograd.grad(y, (x, scale), grad)
    wide, wide_scale = (t.detach().double().requires_grad_() for t in (x, scale))
    wanted = MAPS[name].exact(wide, **given, scale=wide_scale)
    inside = wanted != (-math.inf if name == "log_stablemax" else 0)
    gradients = torch.autograd.grad(wanted[inside], (wide, wide_scale), grad.double()[inside])
    torch.testing.assert_close(dx.double(), gradients[0], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(dscale.double(), gradients[1], rtol=1e-4, atol=1e-4)
    (alone,) = torch.autograd.grad(MAPS[name].run(x, **given, scale=scale.detach()), x, grad)
    torch.testing.assert_close(alone, dx, rtol=1e-4, atol=2e-5)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("n", [7, 300])
def test_gradient_of_pladis(alpha, n, dtype, device):
    x = randn(9, n, dtype=dtype, device=device).requires_grad_()
    grad = randn(9, n, dtype=dtype, device=device, key=1)
    (dx,) = torch.autograd.grad(fastops.pladis_softmax(x, 1.7, alpha), x, grad)
    wide = x.detach().double().requires_grad_()
    y = pladis_softmax_reference(wide, 1.7, alpha)
    (wanted,) = torch.autograd.grad(y, wide, grad.double())
    torch.testing.assert_close(dx.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    x = randn(3, 7, dtype=torch.float64).requires_grad_()
    scale = (randn(3, dtype=torch.float64).abs() + 0.3).requires_grad_()
    mask = booleans(3, 7, share=0.8)

    def run(x, scale):
        y = MAPS[name].run(x, mask=mask, scale=scale, masked_rows="zero")
        return torch.where(mask, y, 0.0)

    assert torch.autograd.gradcheck(run, (x, scale))
    assert torch.autograd.gradgradcheck(run, (x, scale))


@pytest.mark.parametrize("alphas", [(1.2, 1.5, 1.9), (0.7, 1.0, 1.001)])
def test_gradcheck_of_alpha(alphas):
    x = randn(3, 7, dtype=torch.float64).requires_grad_()
    alpha = torch.tensor(alphas, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(fastops.entmax, (x, alpha))
    if 1.0 not in alphas:
        assert torch.autograd.gradgradcheck(fastops.entmax, (x, alpha))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_alpha_broadcasts(dtype, device):
    """One alpha per head, its gradient summed over the rest; alpha 1 among them."""
    x = randn(2, 4, 5, 30, dtype=dtype, device=device)
    grad = randn(2, 4, 5, 30, dtype=dtype, device=device, key=1)
    alpha = torch.tensor([1.0, 1.02, 1.5, 2.0], dtype=dtype, device=device).reshape(4, 1)
    alpha.requires_grad_()
    (got,) = torch.autograd.grad(fastops.entmax(x, alpha), alpha, grad)
    step = 1e-5
    up, down = (
        (entmax_reference(x.double(), (alpha.detach().double() + d).expand(2, 4, 5)) * grad)
        for d in (step, -step)
    )
    wanted = ((up - down) / (2 * step)).sum((0, 2, 3)).reshape(4, 1)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-3)


def test_double_backward_off_the_support():
    """Powers of y have no derivative at 0; nothing of that reaches a gradient."""
    x = torch.tensor([[2.0, 0.0, -1.0, -3.0]], dtype=torch.float64, requires_grad=True)
    for alpha in (1.5, 2.0, 1.3):
        y = fastops.entmax(x, alpha)
        assert (y == 0).any()
        (dx,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(dx.square().sum(), x)
        assert second.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name):
    """Of x and scale, against autograd twice through the reference."""
    given = {"mask": booleans(4, 9, 7), "lengths": integers(0, 7, 4, 1), "masked_rows": "zero"}
    second = []
    for run in (MAPS[name].run, MAPS[name].exact):
        x = randn(4, 9, 7, dtype=torch.float64).requires_grad_()
        scale = (randn(9, dtype=torch.float64).abs() + 0.1).requires_grad_()
        y = run(x, **given, scale=scale)
        y = torch.where(y == -math.inf, 0.0, y)
        weights = (randn(*t.shape, dtype=torch.float64, key=1) for t in (y, x, scale))
        first = torch.autograd.grad((y * next(weights)).sum(), (x, scale), create_graph=True)
        total = sum((t * w).sum() for t, w in zip(first, weights, strict=True))
        second.append(torch.autograd.grad(total, (x, scale)))
    for got, wanted in zip(*second, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-7)


def test_second_derivatives_where_x_is_not_finite():
    """Of x and scale: 0 * inf is nowhere, be the element or the row left out or not."""
    x = randn(4, 6, dtype=torch.float64)
    x[0, 1] = x[1] = -math.inf
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[2, 2], x[2, 2], mask[3], x[3, 0] = False, math.nan, False, math.inf
    target = torch.zeros(4, dtype=torch.int64)
    functions = {
        **{name: MAPS[name].run for name in NAMES},
        "softmax_topk": lambda x, **k: fastops.softmax_topk(x, 3, **k)[0],
        "entmax15_loss": lambda x, **k: fastops.entmax15_loss(x, target, reduction="none", **k),
    }
    for name, function in functions.items():
        leaves = (x.clone().requires_grad_(), torch.full((4,), 0.7).double().requires_grad_())
        y = function(leaves[0], mask=mask, scale=leaves[1], masked_rows="zero")
        weights = randn(*y.shape, dtype=torch.float64, key=1)
        total = (torch.where(y.isfinite(), y, 0.0) * weights).sum()
        first = torch.autograd.grad(total, leaves, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), leaves)
        for t in (*first, *second):
            assert t.isfinite().all(), name
            assert (t[1] == 0).all() and (t[3] == 0).all(), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0,), ()])
def test_gradients_of_nothing(name, shape):
    """Of rows of no elements, of no rows, and of a 0-d tensor: twice, and of the right shapes."""
    x = randn(*shape).requires_grad_()
    scale = torch.ones(shape[:-1], requires_grad=True)
    total = MAPS[name].run(x, scale=scale).sum()
    first = torch.autograd.grad(total, (x, scale), create_graph=True)
    second = torch.autograd.grad(sum(t.sum() for t in first), (x, scale))
    for grad, like in zip((*first, *second), (x, scale) * 2, strict=True):
        assert grad.shape == like.shape
        assert grad.abs().sum() < 1e-5 or name == "softpick"


# ---- losses ------------------------------------------------------------------------------------

LOSSES = {
    "sparsemax_loss": (fastops.sparsemax_loss, 2.0),
    "entmax15_loss": (fastops.entmax15_loss, 1.5),
    "entmax_loss 1.3": (lambda x, t, **k: fastops.entmax_loss(x, t, 1.3, **k), 1.3),
    "entmax_loss 1": (lambda x, t, **k: fastops.entmax_loss(x, t, 1.0, **k), 1.0),
}


@pytest.mark.isa
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 10, 1001])
def test_loss(name, dtype, n, device):
    function, alpha = LOSSES[name]
    x = randn(9, n, dtype=dtype, device=device, spread=2).requires_grad_()
    target = integers(0, n - 1, 9, device=device)
    target[4] = -100
    loss = function(x, target, reduction="none")
    wide = x.detach().double().requires_grad_()
    wanted = entmax_loss_reference(wide, target, alpha)
    eps = torch.finfo(dtype).eps + 8 * torch.finfo(accumulator(dtype)).eps
    torch.testing.assert_close(loss.double(), wanted, rtol=eps, atol=8 * eps)
    weights = randn(9, dtype=dtype, device=device, key=1)
    (dx,) = torch.autograd.grad(loss, x, weights)
    (gradient,) = torch.autograd.grad(wanted, wide, weights.double())
    torch.testing.assert_close(dx.double(), gradient, rtol=8 * eps, atol=16 * eps)
    mean = function(x, target)
    torch.testing.assert_close(mean.double(), wanted.sum() / 8, rtol=8 * eps, atol=8 * eps)
    total = function(x, target, reduction="sum")
    torch.testing.assert_close(total.double(), wanted.sum(), rtol=8 * eps, atol=8 * eps)


@pytest.mark.isa
@pytest.mark.parametrize("name", LOSSES)
def test_loss_along_another_dim(name, device):
    function, alpha = LOSSES[name]
    x = randn(3, 11, 4, device=device)
    target, lengths = integers(0, 4, 3, 4, device=device), integers(5, 11, 3, 1, device=device)
    lengths = lengths.expand(3, 4)
    given = {"scale": 0.6, "lengths": lengths}
    loss = function(x, target, dim=1, reduction="none", **given)
    wanted = entmax_loss_reference(x, target, alpha, 1, **given)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.isa
def test_special_losses(device):
    x = randn(4, 6, device=device)
    x[0, 2], x[1] = math.nan, -math.inf
    mask = torch.ones(4, 6, dtype=torch.bool, device=device)
    mask[2, 3] = False
    loss = fastops.sparsemax_loss(x, torch.full((4,), 3, device=device), mask=mask,
                                  reduction="none")  # fmt: skip
    assert loss[0].isnan() and loss[1].isnan()
    assert loss[2] == math.inf and loss[3].isfinite()
    loss = fastops.sparsemax_loss(x, torch.full((4,), 3, device=device), masked_rows="zero",
                                  reduction="none")  # fmt: skip
    assert loss[0].isnan() and loss[1] == 0 and loss[2:].isfinite().all()
    one_hot = torch.zeros(1, 6, device=device)
    one_hot[0, 1] = 9
    assert fastops.sparsemax_loss(one_hot, torch.tensor([1], device=device)) == 0


@pytest.mark.isa
@pytest.mark.parametrize("name", LOSSES)
def test_rows_without_a_loss_have_no_gradient(name, device):
    """Ignored ones, whatever is in them, and those without a score above -inf."""
    function, _ = LOSSES[name]
    x = randn(6, 9, device=device)
    x[0, 3], x[1, 3], x[2], x[3] = math.nan, math.inf, -math.inf, -math.inf
    x.requires_grad_()
    target = torch.tensor([-100, -100, -100, 5, -100, 5], device=device)
    loss = function(x, target, reduction="none", masked_rows="zero")
    assert (loss[:5] == 0).all()
    (dx,) = torch.autograd.grad(loss.sum(), x)
    assert (dx[:5] == 0).all() and (dx[5] != 0).any()
    mean = function(x, target, masked_rows="zero")
    torch.testing.assert_close(mean, loss.sum() / 2)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_gradcheck(name):
    function, _ = LOSSES[name]
    x = randn(3, 7, dtype=torch.float64).requires_grad_()
    scale = (randn(3, dtype=torch.float64).abs() + 0.3).requires_grad_()
    target = torch.tensor([1, -100, 6])

    def run(x, scale):
        return function(x, target, scale=scale, reduction="none")

    assert torch.autograd.gradcheck(run, (x, scale))
    assert torch.autograd.gradgradcheck(run, (x, scale))


def test_cross_entropy():
    x, target = randn(5, 9), integers(0, 8, 5)
    wanted = torch.nn.functional.cross_entropy(x, target)
    torch.testing.assert_close(fastops.entmax_loss(x, target, 1.0), wanted)


def test_entmax_package():
    entmax = pytest.importorskip("entmax")
    x, target = randn(20, 30, dtype=torch.float64), integers(0, 29, 20)
    ours = fastops.sparsemax_loss(x, target, reduction="none")
    torch.testing.assert_close(ours, entmax.sparsemax_loss(x, target), rtol=1e-12, atol=1e-12)
    ours = fastops.entmax15_loss(x, target, reduction="none")
    torch.testing.assert_close(ours, entmax.entmax15_loss(x, target), rtol=1e-12, atol=1e-12)


@pytest.mark.isa
def test_backward_is_deterministic(device):
    x, grad = randn(20, 300, device=device), randn(20, 300, device=device, key=1)
    for name in NAMES:
        op, _, more = backward(name)
        saved = MAPS[name].run(x) if op == "entmax_backward" else x
        run = getattr(torch.ops.fastops, op)
        assert same_bits(run(grad, saved, [-1], **more), run(grad, saved, [-1], **more))


@pytest.mark.isa
@pytest.mark.parametrize("name", ["sparsemax", "entmax15", "entmax1.3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [250, 1003])
def test_more_than_the_caches(name, dtype, n, device):
    """Streamed past them, from rows that start anywhere in a line."""
    x = randn((1 << 24) // n, n, dtype=dtype, device=device, spread=2)
    grad = randn(*x.shape, dtype=dtype, device=device, key=1)
    op, _, more = backward(name)
    y = MAPS[name].run(x)
    dx, some = (
        getattr(torch.ops.fastops, op)(g, s, [-1], **more)
        for g, s in ((grad, y), (grad[::999].contiguous(), y[::999].contiguous()))
    )
    assert same_bits(dx[::999], some)
