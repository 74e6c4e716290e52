"""Gradients of every argument, to second order, backward and forward, and under torch.func."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import fastops
from fastops.softmax.reference import log_softmax_reference, logsumexp_reference, softmax_reference

F64 = torch.float64
REFERENCES = {
    "softmax": softmax_reference,
    "log_softmax": log_softmax_reference,
    "logsumexp": logsumexp_reference,
}
NAMES = list(REFERENCES)


def arguments():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(4, 3, generator=generator) > 0.3
    mask[1] = False

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=F64).add(0.5).requires_grad_()

    return {
        "plain": {},
        "dims": {"dim": (0, 2)},
        "mask": {"mask": mask, "masked_rows": "zero"},
        "lengths": {"lengths": torch.tensor([[1, 3, 0, 2], [3, 2, 1, 1]]), "masked_rows": "zero"},
        "causal": {"causal": "lower_right", "masked_rows": "zero", "scale": 0.5},
        "bias": {"bias": rand(3)},
        "bias of x's shape": {"bias": rand(2, 4, 3), "scale": 2.0},
        "scale": {"scale": rand(4)},
        "scale of x's rank": {"scale": rand(2, 1, 1), "causal": True},
        "all": {
            "bias": rand(4, 1),
            "scale": rand(2, 4, 1),
            "mask": mask,
            "causal": True,
            "masked_rows": "zero",
        },
    }


def finite(t):
    return torch.where(t.isinf(), 0.0, t)


def differentiable(function, name, given):
    """A function of the tensors that want gradients, and those tensors."""
    given = dict(given)
    dim = given.pop("dim", -1)
    if name == "logsumexp":
        given.pop("masked_rows", None)
    else:
        given["return_lse"] = True
    wanted = [key for key, v in given.items() if isinstance(v, torch.Tensor) and v.requires_grad]

    def call(x, *tensors):
        result = function(x, dim, **{**given, **dict(zip(wanted, tensors, strict=True))})
        return tuple(map(finite, result)) if isinstance(result, tuple) else finite(result)

    x = torch.randn(2, 4, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    return call, (x.requires_grad_(), *(given[key] for key in wanted))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", arguments())
def test_gradcheck(name, case):
    function, inputs = differentiable(getattr(fastops, name), name, arguments()[case])
    assert gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", arguments())
def test_gradients_of_reference(name, case):
    gradients = []
    for function in (getattr(fastops, name), REFERENCES[name]):
        call, inputs = differentiable(function, name, arguments()[case])
        results = call(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        gradients.append(torch.autograd.grad([t.sin().sum() for t in results], inputs))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_gradient_dtypes_and_shapes(name):
    x = torch.randn(3, 5, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float32, requires_grad=True)
    scale = torch.rand(3, 1, dtype=torch.float32, requires_grad=True)
    out = getattr(fastops, name)(x, bias=bias, scale=scale, dtype=torch.float32)
    out.square().sum().backward()
    assert (x.grad.dtype, bias.grad.dtype, scale.grad.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    assert (bias.grad.shape, scale.grad.shape) == (bias.shape, scale.shape)


def test_excluded_nan_leaves_gradients_finite():
    x = torch.tensor([[1.0, float("nan"), 2.0]], requires_grad=True)
    scale = torch.tensor([2.0], requires_grad=True)
    for name in NAMES:
        out = getattr(fastops, name)(x, -1, lengths=torch.tensor([1]), scale=scale)
        out = torch.where(out.isinf(), 0.0, out)
        gradients = torch.autograd.grad(out.sum(), (x, scale))
        assert all(g.isfinite().all() for g in gradients)
        assert (gradients[0][:, 1:] == 0).all()


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_no_gradient_where_none_is_wanted(name):
    x = torch.randn(3, requires_grad=True)
    function = getattr(fastops, name)
    with torch.no_grad():
        assert not function(x).requires_grad
    with torch.inference_mode():
        assert function(torch.randn(3)).is_inference()
    assert not function(x.detach(), scale=2.0).requires_grad
    assert function(x).requires_grad
    _, lse = function(x, return_lse=True)
    assert torch.autograd.grad(lse, x, retain_graph=True)[0].sum().isclose(torch.tensor(1.0))


@pytest.mark.parametrize("name", NAMES)
def test_transforms(name):
    ours, theirs = getattr(fastops, name), getattr(torch, name)
    x = torch.randn(2, 3, dtype=F64)

    def scalar(function):
        return lambda t: function(t, -1).sin().sum()

    for transform in (grad, hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f))):
        torch.testing.assert_close(transform(scalar(ours))(x), transform(scalar(theirs))(x))
    per_row = vmap(grad(lambda t: ours(t, 0).sin().sum()))(x)
    torch.testing.assert_close(per_row, grad(scalar(theirs))(x))
    through_vmap = grad(lambda t: vmap(lambda row: ours(row, 0))(t).sin().sum())(x)
    torch.testing.assert_close(through_vmap, grad(scalar(theirs))(x))
