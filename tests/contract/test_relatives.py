"""The relatives of softmax behind the public functions: errors, arrays, compilers."""

import numpy as np
import pytest
import torch

import fastops
from tests.numerics import assert_repeats

TARGET = torch.zeros(2, 3, dtype=torch.int64)
FUNCTIONS = {
    "sparsemax": fastops.sparsemax,
    "entmax15": fastops.entmax15,
    "entmax": fastops.entmax,
    "pladis_softmax": lambda x, **k: fastops.pladis_softmax(x, **{"lam": 1.0, **k}),
    "softpick": fastops.softpick,
    "stablemax": fastops.stablemax,
    "log_stablemax": fastops.log_stablemax,
    "softmax_topk": lambda x, **k: fastops.softmax_topk(x, **{"k": 2, **k}),
    "sparsemax_loss": lambda x, **k: fastops.sparsemax_loss(x, **{"target": TARGET, **k}),
    "entmax15_loss": lambda x, **k: fastops.entmax15_loss(x, **{"target": TARGET, **k}),
    "entmax_loss": lambda x, **k: fastops.entmax_loss(x, **{"target": TARGET, **k}),
}
EVERY = [
    ({"dim": 3}, ValueError, "expected dim in [-3, 2]"),
    ({"mask": torch.ones(4)}, TypeError, "expected mask of dtype torch.bool"),
    ({"lengths": torch.tensor([1, 5, 2])}, ValueError, "expected lengths in [0, 4], got 5"),
    ({"scale": "2"}, TypeError, "expected scale to be a number or a tensor"),
    ({"causal": "no"}, ValueError, "expected causal to be one of"),
    ({"masked_rows": "no"}, ValueError, "expected masked_rows to be one of 'nan', 'zero'"),
    ({"masked_rows": None}, TypeError, "expected masked_rows to be one of 'nan', 'zero'"),
]
SOME = [
    ("entmax", {"alpha": 0.0}, ValueError, "expected alpha in (0, 4], got 0.0"),
    ("entmax", {"alpha": 4.5}, ValueError, "expected alpha in (0, 4], got 4.5"),
    ("entmax", {"alpha": float("nan")}, ValueError, "expected alpha in (0, 4]"),
    ("entmax", {"alpha": "2"}, TypeError, "expected alpha to be a number, got str"),
    ("entmax", {"alpha": torch.ones(2, 3, 4)}, ValueError, "expected alpha to broadcast"),
    ("entmax", {"alpha": torch.tensor([1.0, -1.0, 2.0])}, ValueError, "(0, 4], got -1.0"),
    ("entmax", {"alpha": torch.ones(3, dtype=torch.int64)}, TypeError, "expected alpha of dtype"),
    ("pladis_softmax", {"lam": None}, TypeError, "expected lam to be a number"),
    ("pladis_softmax", {"lam": float("inf")}, ValueError, "expected a finite lam, got inf"),
    ("pladis_softmax", {"alpha": 5}, ValueError, "expected alpha in (0, 4]"),
    ("softpick", {"eps": -1e-3}, ValueError, "expected eps >= 0"),
    ("softmax_topk", {"k": 5}, ValueError, "expected k in [0, 4] (x.shape[2]), got 5"),
    ("softmax_topk", {"k": -1}, ValueError, "expected k in [0, 4]"),
    ("softmax_topk", {"k": 1.0}, TypeError, "expected k to be an int"),
    ("softmax_topk", {"dim": (0, 1)}, ValueError, "expected one dim"),
    ("softmax_topk", {"renormalize": 1}, TypeError, "expected renormalize to be a bool"),
    ("sparsemax_loss", {"target": TARGET.float()}, TypeError, "expected target of dtype"),
    ("sparsemax_loss", {"target": TARGET[0]}, ValueError, "expected target of shape (2, 3)"),
    ("sparsemax_loss", {"target": TARGET + 4}, ValueError, "expected target in [0, 3], got 4"),
    ("sparsemax_loss", {"reduction": "max"}, ValueError, "expected reduction to be one of"),
    ("sparsemax_loss", {"ignore_index": None}, TypeError, "expected ignore_index to be an int"),
]


def raises(name, arguments, error, text):
    x = torch.randn(2, 3, 4)
    with pytest.raises(error) as caught:
        FUNCTIONS[name](x, **arguments)
    assert str(caught.value).startswith(f"fastops.{name}: "), caught.value
    assert text in str(caught.value)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("arguments, error, text", EVERY)
def test_bad_argument(name, arguments, error, text):
    raises(name, arguments, error, text)


@pytest.mark.parametrize("name, arguments, error, text", SOME)
def test_bad_argument_of_one(name, arguments, error, text):
    raises(name, arguments, error, text)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_x(name):
    with pytest.raises(TypeError, match=f"fastops.{name}: expected x of dtype float32"):
        FUNCTIONS[name](torch.ones(2, 3, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="expected x to be a tensor or an array, got list"):
        FUNCTIONS[name]([1.0])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numpy(name):
    x = torch.randn(2, 3, 4)
    target = {"target": TARGET.numpy()} if name.endswith("loss") else {}
    got, wanted = FUNCTIONS[name](x.numpy(), **target), FUNCTIONS[name](x)
    pairs = zip(got, wanted, strict=True) if isinstance(got, tuple) else [(got, wanted)]
    for a, b in pairs:
        assert isinstance(a, np.ndarray)
        np.testing.assert_array_equal(a, b.numpy())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_determinism(name):
    """The same bits every time, forward and backward, on any number of threads."""
    x = torch.randn(200, 3, 300, requires_grad=True)
    target = {"target": torch.arange(600).view(200, 3) % 300} if name.endswith("loss") else {}

    def run():
        y = FUNCTIONS[name](x, **target)
        y = y[0] if isinstance(y, tuple) else y
        return y.detach(), *torch.autograd.grad(y.square().sum(), x)

    assert_repeats(run, 40)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(name, dynamic):
    x = torch.randn(2, 3, 4, requires_grad=True)

    def run(x):
        y = FUNCTIONS[name](x * 2)
        return (y[0] if isinstance(y, tuple) else y) * 3

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    torch.testing.assert_close(compiled(x), run(x))
    weights = torch.randn_like(run(x))
    for got, wanted in zip(
        torch.autograd.grad(compiled(x), x, weights),
        torch.autograd.grad(run(x), x, weights), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(got, wanted)


NUMBERS = {
    "alpha": (lambda x, n: fastops.entmax(x, 1 + n), (0.2, 0.5)),
    "lam": (lambda x, n: fastops.pladis_softmax(x, n), (0.2, 1.5)),
    "eps": (lambda x, n: fastops.softpick(x, eps=n), (0.2, 0.5)),
    "scale": (lambda x, n: fastops.sparsemax(x, scale=n), (0.2, 0.5)),
    "k": (lambda x, n: fastops.softmax_topk(x, n)[0], (1, 3)),
    "dim": (lambda x, n: fastops.softmax_topk(x, 2, n)[0], (1, -1)),
}


@pytest.mark.parametrize("which", NUMBERS)
def test_compile_with_numbers_as_arguments(which):
    """Which a compiler that assumes nothing about them makes symbolic."""
    function, numbers = NUMBERS[which]
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    x = torch.randn(2, 3, 4)
    for number in numbers:
        torch.testing.assert_close(compiled(x, number), function(x, number))


def opcheck_samples():
    x, grad = torch.randn(3, 5), torch.randn(3, 5)
    rows = torch.rand(3) + 1
    ops = torch.ops.fastops
    for name in ("entmax", "pladis_softmax", "softpick", "stablemax", "log_stablemax"):
        more = {"row_alpha": rows} if name == "entmax" else {}
        yield getattr(ops, name).default, (x, [-1]), {"scale": 0.5, "row_scale": rows, **more}
        yield getattr(ops, f"{name}_backward").default, (grad, x.softmax(-1), [-1]), more
    yield ops.entmax_alpha_backward.default, (grad, x.softmax(-1), [-1]), {"row_alpha": rows}
    target = torch.tensor([0, 4, -100])
    yield ops.entmax_loss.default, (x, target, [-1]), {"alpha": 1.3}
    yield ops.entmax_loss_backward.default, (rows, x, target, [-1]), {"alpha": 1.3}
    yield ops.softmax_topk.default, (x, 2, -1), {"renormalize": True}
    yield (
        ops.softmax_topk_backward.default,
        (grad[:, :2], torch.tensor([[0, 1], [2, 3], [4, 1]]), x, x.logsumexp(-1), -1),
        {},
    )


@pytest.mark.parametrize("op, args, kwargs", list(opcheck_samples()), ids=lambda v: getattr(
    v, "_name", None))  # fmt: skip
def test_opcheck(op, args, kwargs):
    args = tuple(
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in args
    )
    torch.library.opcheck(op, args, kwargs)


@pytest.mark.parametrize("name", ["sparsemax", "entmax", "pladis_softmax", "softpick", "stablemax"])
def test_vmap(name):
    x = torch.randn(4, 2, 3, 5)
    function = FUNCTIONS[name]
    got = torch.vmap(lambda t: function(t, dim=0), in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(got, function(x, dim=0))
    gradients = torch.vmap(torch.func.grad(lambda t: function(t).square().sum()))(x)
    wide = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(function(wide).square().sum(), wide)
    torch.testing.assert_close(gradients, wanted)
