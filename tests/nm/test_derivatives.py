"""Gradients: against the dense product, by finite differences, and of gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import fastops
from fastops.nm import packing
from tests.nm.samples import DTYPES, PATTERNS, judge, randn, sparse

pytestmark = pytest.mark.isa
OPS = torch.ops.fastops


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rows", [1, 6, 40, 150])
def test_against_dense(device, dtype, pattern, rows):
    m = int(pattern.split(":")[1])
    w, weight = sparse(45, m * (100 // m), pattern, dtype, device)
    x = randn(rows, w.shape[1], dtype=dtype, device=device).requires_grad_()
    bias = randn(45, dtype=dtype, device=device, seed=2).requires_grad_()
    weight.requires_grad_()
    grad = randn(rows, 45, dtype=dtype, device=device, seed=4)
    fastops.nm_linear(x, weight, bias).backward(grad)
    judge(x.grad, grad, w.t().contiguous(), None)
    dense = torch.zeros_like(w).scatter(1, weight.columns(), weight.values.grad)
    mask = torch.zeros_like(w, dtype=torch.bool).scatter(1, weight.columns(), True)
    exact = grad.double().t() @ x.detach().double()
    size = grad.double().abs().t() @ x.detach().double().abs()
    peer = grad.t() @ x.detach()
    eps = torch.finfo(dtype).eps
    allowed = 2 * (peer.double() - exact).abs().amax() + eps * size + eps
    assert ((dense.double() - exact).abs() <= allowed)[mask].all()
    torch.testing.assert_close(bias.grad, grad.sum(0))


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_activations_against_dense(device, activation):
    w, weight = sparse(12, 16, "2:4", device=device)
    weight.requires_grad_()
    dense = w.clone().requires_grad_()
    x, bias = randn(3, 5, 16, device=device), randn(12, device=device, seed=2)
    inputs = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
    peers = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
    ours = fastops.nm_linear(inputs[0], weight, inputs[1], activation)
    theirs = F.linear(peers[0], dense, peers[1])
    theirs = theirs if activation is None else getattr(F, activation)(theirs)
    grad = randn(3, 5, 12, device=device, seed=4)
    ours.backward(grad)
    theirs.backward(grad)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(inputs, peers, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(weight.values.grad, dense.grad.gather(1, weight.columns()))


# The ops are fp32: products are bilinear, so a long step costs no accuracy.
STEP = {"eps": 0.25, "atol": 2e-3, "rtol": 2e-3}


@pytest.mark.filterwarnings("ignore:Input #:UserWarning")
@pytest.mark.parametrize("pattern", ["2:4", "1:3"])
@pytest.mark.parametrize("rows", [2, 11])
def test_gradcheck(device, pattern, rows, monkeypatch):
    # Finite differences write through .data, which nothing can see.
    monkeypatch.setattr(packing, "_cached", lambda *a: packing.Packing(*packing.make(*a)[::2]))
    n, m = map(int, pattern.split(":"))
    _, weight = sparse(6, 4 * m, pattern, device=device)
    values, indices = weight.values.requires_grad_(), weight.indices
    x = randn(rows, 4 * m, device=device).requires_grad_()
    bias = randn(6, device=device, seed=2).requires_grad_()
    grad = randn(rows, 6, device=device, seed=4).requires_grad_()

    def linear(x, v, b):
        return OPS.nm_linear(x, v, indices, n, m, b)

    def dx(g, v):
        return OPS.nm_linear_dx(g, v, indices, n, m, 4 * m)

    def dw(g, x):
        return OPS.nm_linear_dw(g, x, indices, n, m)

    for function, inputs in ((linear, (x, values, bias)), (dx, (grad, values)), (dw, (grad, x))):
        assert gradcheck(function, inputs, **STEP)
        assert gradgradcheck(function, inputs, **STEP)
    assert gradcheck(lambda v: OPS.nm_decompress(v, indices, n, m, 4 * m), (values,), **STEP)


@pytest.mark.parametrize("activation", [1, 2, 3])
def test_fused_activation_of_the_op_itself(device, activation):
    """The raw op with its activation fused computes the sum again for the gradient."""
    _, weight = sparse(6, 16, "2:4", device=device)
    x = randn(5, 16, device=device)
    function = (torch.relu, F.gelu, F.silu)[activation - 1]
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    OPS.nm_linear(a, weight.values, weight.indices, 2, 4, None, activation).sum().backward()
    function(F.linear(b, weight.dense())).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_strided_gradients(device):
    w, weight = sparse(6, 16, "2:4", device=device)
    x = randn(5, 16, device=device).requires_grad_()
    y = fastops.nm_linear(x, weight.requires_grad_())
    y.sum().backward()  # an expanded gradient
    torch.testing.assert_close(x.grad, torch.ones(5, 6, device=device) @ w)
