"""opcheck, torch.compile, torch.export, fake tensors and autocast of the N:M ops."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import fastops
from fastops.nn import NMLinear
from tests.nm.samples import randn, sparse

OPS = torch.ops.fastops


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad):
    _, weight = sparse(6, 16, "2:4")
    values, indices = weight.values.requires_grad_(requires_grad), weight.indices
    x = randn(3, 5, 16).requires_grad_(requires_grad)
    bias = randn(6).requires_grad_(requires_grad)
    grad = randn(3, 5, 6).requires_grad_(requires_grad)
    opcheck(OPS.nm_linear.default, (x, values, indices, 2, 4, bias))
    opcheck(OPS.nm_linear.default, (x.transpose(0, 1), values, indices, 2, 4, None, 1))
    opcheck(OPS.nm_linear_dx.default, (grad, values, indices, 2, 4, 16))
    opcheck(OPS.nm_linear_dw.default, (grad, x, indices, 2, 4))
    opcheck(OPS.nm_decompress.default, (values, indices, 2, 4, 16))


def test_opcheck_pruning():
    w, weight = sparse(6, 16, "2:4")
    opcheck(OPS.nm_mask.default, (w, 2, 4, w.abs()))
    opcheck(OPS.nm_prune.default, (w, 2, 4))
    opcheck(OPS.nm_compress.default, (w, 2, 4, w != 0))
    opcheck(OPS.nm_check.default, (weight.indices, 2, 4, 16))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_compile_module(dynamic, activation):
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = NMLinear(16, 6, "2:4", activation=activation)
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (3, 12):
        x = randn(rows, 16)
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        gradients = []
        for f, i in zip((module, compiled), inputs, strict=True):
            module.zero_grad()
            f(i).square().sum().backward()
            gradients.append([i.grad, module.values.grad.clone(), module.bias.grad.clone()])
        torch.testing.assert_close(*gradients)
        with torch.no_grad():
            module.values.mul_(2)  # the packing behind the graph must follow


def test_inductor():
    torch._dynamo.reset()
    w, weight = sparse(6, 16, "2:4")
    compiled = torch.compile(lambda x: fastops.nm_linear(x * 2, weight).sin(), fullgraph=True)
    x = randn(5, 16)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), F.linear(x * 2, w).sin())


def test_weight_as_an_argument():
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def call(x, weight):
        return fastops.nm_linear(x, weight, None, "relu") + weight.dense().sum()

    for seed in (1, 2):
        w, weight = sparse(6, 16, "2:4", seed=seed)
        x = randn(5, 16)
        torch.testing.assert_close(call(x, weight), F.relu(F.linear(x, w)) + w.sum())


def test_export():
    module = torch.nn.Sequential(NMLinear(16, 8, "2:4", activation="relu"), NMLinear(8, 4, "1:4"))
    module.requires_grad_(False)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(module, (randn(3, 16),), dynamic_shapes=({0: rows},))
    x = randn(9, 16)
    torch.testing.assert_close(program.module()(x), module(x))


def test_fake_shapes_and_strides():
    _, weight = sparse(6, 16, "2:4")
    for x in (randn(3, 16), randn(2, 3, 16).transpose(0, 1), randn(16), randn(0, 16)):
        real = fastops.nm_linear(x, weight)
        with FakeTensorMode() as mode:
            v, i = mode.from_tensor(weight.values), mode.from_tensor(weight.indices)
            fake = OPS.nm_linear(mode.from_tensor(x), v, i, 2, 4)
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def test_autocast():
    torch.manual_seed(0)
    module, x = NMLinear(16, 6, "2:4"), randn(5, 16).requires_grad_()
    dense = torch.nn.Linear(16, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
        assert y.dtype == dense(x).dtype == torch.bfloat16
        assert module(x.to(torch.bfloat16)).dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32 and module.values.grad.dtype == torch.float32
    bf16 = module.to(torch.bfloat16)
    torch.testing.assert_close(y.detach(), bf16(x.detach().to(torch.bfloat16)))
