"""opcheck, torch.compile, torch.export, fake tensors and autocast."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import fastops

OPS = torch.ops.fastops
FORWARD = ["softmax", "log_softmax", "softmax_lse", "log_softmax_lse", "logsumexp"]
OUT_UTILS = ("test_schema", "test_autograd_registration", "test_faketensor")
FUNCTIONS = {name: getattr(fastops, name) for name in ("softmax", "log_softmax", "logsumexp")}


def score_arguments():
    return {
        "bias": torch.randn(4),
        "lengths": torch.randint(1, 5, (3, 5)),
        "causal": 1,
        "scale": 0.5,
        "row_scale": torch.rand(3, 1, 1),
    }


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_forward(name, requires_grad):
    op = getattr(OPS, name).default
    x = torch.randn(3, 5, 4)
    opcheck(op, (x.clone().requires_grad_(requires_grad), [-1]), score_arguments())
    transposed = torch.randn(5, 3, 4).transpose(0, 1).detach().requires_grad_(requires_grad)
    opcheck(op, (transposed, [0, 2]))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_opcheck_backward(name):
    y = getattr(torch, name)(torch.randn(3, 5, 4), -1)
    op = getattr(OPS, f"{name}_backward")
    given = {"row_scale": torch.rand(5), "grad_lse": torch.randn(3, 5)}
    opcheck(op.default, (torch.randn(3, 5, 4), y, [-1]), given)
    opcheck(op.default, (torch.randn(3, 5, 4), y.clone().requires_grad_(), [-1]), given)
    opcheck(op.out, (torch.randn_like(y), y), {"out": torch.empty_like(y)}, test_utils=OUT_UTILS)


def test_opcheck_logsumexp_backward():
    x = torch.randn(3, 5, 4)
    args = (torch.randn(3, 5), x.requires_grad_(), torch.logsumexp(x, -1).detach(), [-1])
    opcheck(OPS.logsumexp_backward.default, args)


@pytest.mark.parametrize("name", FORWARD)
def test_opcheck_out(name):
    x = torch.randn(3, 5)
    outs = {"out": torch.empty(3) if name == "logsumexp" else torch.empty(3, 5)}
    if name.endswith("lse"):
        outs["lse"] = torch.empty(3)
    opcheck(getattr(OPS, name).out, (x, [-1]), outs, test_utils=OUT_UTILS)


@pytest.mark.parametrize("name", ["_softmax", "_log_softmax"])
def test_opcheck_plain(name):
    opcheck(getattr(OPS, name).default, (torch.randn(3, 5), -1))


def every_argument(function, normalizer):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(5, 4, generator=generator) > 0.2
    given = {"mask": mask, "bias": torch.randn(4, generator=generator), "causal": True}
    extra = {"return_lse": True, "masked_rows": "zero"} if normalizer else {}

    def call(x, scale):
        plain = function(x, -1)
        result = function(x, -1, scale=scale, **given, **extra)
        first = result[0] if normalizer else result
        tail = result[1] if normalizer else result
        return plain.sin().sum() + torch.where(first.isinf(), 0.0, first).cos().sum() + tail.sum()

    return call


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(name, dynamic):
    torch._dynamo.reset()  # the cases share a code object, and its limit of recompilations
    call = every_argument(FUNCTIONS[name], name != "logsumexp")
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (3, 4):
        x, scale = torch.randn(rows, 5, 4) + 3, torch.rand(rows, 1, 1)
        inputs = [(x.clone().requires_grad_(), scale.clone().requires_grad_()) for _ in range(2)]
        values = [f(*i) for f, i in zip((call, compiled), inputs, strict=True)]
        values[0].backward()
        values[1].backward()
        torch.testing.assert_close(*values, equal_nan=True)
        for eager, traced in zip(*inputs, strict=True):
            torch.testing.assert_close(eager.grad, traced.grad, equal_nan=True)


def test_compile_out():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def call(x, out):
        return fastops.softmax(x, out=out) * 2

    x, out = torch.randn(3, 4), torch.empty(3, 4)
    torch.testing.assert_close(call(x, out), torch.softmax(x, -1) * 2)
    torch.testing.assert_close(out, torch.softmax(x, -1))


def test_inductor():
    compiled = torch.compile(lambda x: fastops.softmax(x * 2, 0).t() + 1, fullgraph=True)
    x = torch.randn(6, 5)
    torch.testing.assert_close(compiled(x), torch.softmax(x * 2, 0).t() + 1)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    class Model(torch.nn.Module):
        def forward(self, x, mask):
            return fastops.softmax(x, mask=mask) + fastops.logsumexp(x, -1, keepdim=True)

    example = (torch.randn(3, 4), torch.rand(4) > 0.2)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        Model(), example, dynamic_shapes=({0: batch}, None), strict=strict
    )
    x, mask = torch.randn(7, 4), torch.tensor([True, False, True, True])
    torch.testing.assert_close(program.module()(x, mask), Model()(x, mask))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_fake_strides_and_dtypes(name):
    layouts = [(3, 4), (4, 3), (2, 3, 4), (1, 5), (5, 1), (0, 3)]
    for shape in layouts:
        x = torch.randn(shape)
        for t in (x, x.transpose(0, 1), x[..., ::2], x.expand(2, *shape), x.half()):
            real = FUNCTIONS[name](t, -1)
            with FakeTensorMode() as mode:
                fake = FUNCTIONS[name](mode.from_tensor(t), -1)
            assert (fake.shape, fake.stride(), fake.dtype) == (
                real.shape,
                real.stride(),
                real.dtype,
            )


def test_meta():
    x = torch.empty(3, 4, device="meta", dtype=torch.bfloat16)
    out, lse = fastops.softmax(x, return_lse=True, dtype=torch.float32)
    assert (out.device.type, out.dtype, lse.shape, lse.dtype) == (
        "meta",
        torch.float32,
        (3,),
        torch.float32,
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_cpu_as_torch(name):
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(3, 4, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert FUNCTIONS[name](x, -1).dtype == getattr(torch, name)(x, -1).dtype


def test_autocast_cuda_gives_float32():
    # No GPU is needed: fake tensors claim the device, and dispatch as it would.
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    try:
        with FakeTensorMode():
            x = torch.empty(3, 4, device="cuda", dtype=torch.bfloat16)
            assert OPS.softmax(x, [-1]).dtype == torch.float32
            assert OPS._log_softmax(x, -1).dtype == torch.float32
            assert OPS.log_softmax_lse(x, [-1])[0].dtype == torch.float32
            assert OPS.softmax(x, [-1], dtype=torch.float16).dtype == torch.float16
    finally:
        torch.set_autocast_enabled("cuda", before)
