"""What torch needs to know of the N:M ops besides their kernels: the two that find a packing first,
fake (meta) kernels, derivatives and autocast rules. Schemas are in csrc/bindings/library.cpp.

The three products differentiate into one another, so derivatives exist to any order:

    linear(x, v)   y = x W(v)^T        dx = dx(gy, v)      dv = dw(gy, x)
    dx(g, v)       h = g W(v)          dg = linear(gh, v)  dv = dw(g, gh)
    dw(g, x)       dv                  dg = linear(x, gv)  dx = dx(g, gv)
"""

import torch
from torch import Tensor

from .. import _load
from .packing import packed
from .pattern import Pattern

RELU, GELU, SILU = 1, 2, 3

_matmul = _load.fast_op("_nm_matmul")


# ---- the products -------------------------------------------------------------------------------


def linear(x, values, indices, n, m, bias=None, activation=0) -> Tensor:
    """The kernel of nm_linear on every device."""
    in_features = x.shape[-1]
    rows = x.numel() // in_features if in_features else 0
    kind, structure, weights = packed(values, indices, Pattern(n, m), in_features, rows)
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    return _matmul(
        x, weights, structure, bias, values.shape[0], in_features, n, m, kind, activation
    )


def _linear_dx(grad, values, indices, n, m, in_features) -> Tensor:
    out = values.shape[0]
    rows = grad.numel() // out if out else 0
    kind, structure, weights = packed(values, indices, Pattern(n, m), in_features, rows, True)
    return _matmul(grad, weights, structure, None, out, in_features, n, m, kind, 0)


# ---- fake kernels -------------------------------------------------------------------------------


def _fake_mask(w, n, m, scores=None):
    return torch.empty(w.shape, dtype=torch.bool, device=w.device)


def _fake_prune(w, n, m, scores=None):
    return torch.empty(w.shape, dtype=w.dtype, device=w.device)


def _fake_compress(w, n, m, mask=None):
    pattern = Pattern(n, m)
    out, in_features = w.shape
    return (
        torch.empty(out, pattern.kept(in_features), dtype=w.dtype, device=w.device),
        torch.empty(out, pattern.index_bytes(in_features), dtype=torch.uint8, device=w.device),
        torch.empty(1, dtype=torch.int64, device=w.device),
    )


def _fake_decompress(values, indices, n, m, in_features):
    return values.new_empty(values.shape[0], in_features)


def _fake_check(indices, n, m, in_features):
    return torch.empty(1, dtype=torch.int64, device=indices.device)


def _fake_linear(x, values, indices, n, m, bias=None, activation=0):
    return x.new_empty(*x.shape[:-1], values.shape[0])


def _fake_linear_dx(grad, values, indices, n, m, in_features):
    return grad.new_empty(*grad.shape[:-1], in_features)


def _fake_linear_dw(grad, x, indices, n, m):
    return x.new_empty(indices.shape[0], Pattern(n, m).kept(x.shape[-1]))


# ---- derivatives --------------------------------------------------------------------------------

OPS = torch.ops.fastops


def _before_activation(ctx, grad, x, values, indices, bias, output):
    """The gradient of the sum that the activation was given."""
    if ctx.activation == 0:
        return grad
    if ctx.activation == RELU:
        return torch.ops.aten.threshold_backward(grad, output, 0)
    before = OPS.nm_linear(x, values, indices, ctx.n, ctx.m, bias)
    if ctx.activation == GELU:
        return torch.ops.aten.gelu_backward(grad, before)
    return torch.ops.aten.silu_backward(grad, before)


def _setup_linear(ctx, inputs, output):
    x, values, indices, ctx.n, ctx.m, bias, ctx.activation = inputs
    ctx.save_for_backward(x, values, indices, bias, output if ctx.activation == RELU else None)


def _linear_backward(ctx, grad):
    x, values, indices, bias, output = ctx.saved_tensors
    grad = _before_activation(ctx, grad, x, values, indices, bias, output)
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        dx = OPS.nm_linear_dx(grad, values, indices, ctx.n, ctx.m, x.shape[-1])
    if ctx.needs_input_grad[1]:
        dvalues = OPS.nm_linear_dw(grad, x, indices, ctx.n, ctx.m)
    if bias is not None and ctx.needs_input_grad[5]:
        dbias = grad.sum(tuple(range(grad.ndim - 1)))
    return dx, dvalues, None, None, None, dbias, None


def _setup_dx(ctx, inputs, output):
    grad, values, indices, ctx.n, ctx.m, _ = inputs
    ctx.save_for_backward(grad, values, indices)


def _dx_backward(ctx, outer):
    grad, values, indices = ctx.saved_tensors
    dgrad = dvalues = None
    if ctx.needs_input_grad[0]:
        dgrad = OPS.nm_linear(outer, values, indices, ctx.n, ctx.m)
    if ctx.needs_input_grad[1]:
        dvalues = OPS.nm_linear_dw(grad, outer, indices, ctx.n, ctx.m)
    return dgrad, dvalues, None, None, None, None


def _setup_dw(ctx, inputs, output):
    grad, x, indices, ctx.n, ctx.m = inputs
    ctx.save_for_backward(grad, x, indices)


def _dw_backward(ctx, outer):
    grad, x, indices = ctx.saved_tensors
    dgrad = dx = None
    outer = outer.contiguous()
    if ctx.needs_input_grad[0]:
        dgrad = OPS.nm_linear(x, outer, indices, ctx.n, ctx.m)
    if ctx.needs_input_grad[1]:
        dx = OPS.nm_linear_dx(grad, outer, indices, ctx.n, ctx.m, x.shape[-1])
    return dgrad, dx, None, None, None


def columns(indices: Tensor, n: int, m: int, kept: int) -> Tensor:
    """The column of each kept element, int64 of [out, kept]."""
    bits = Pattern(n, m).index_bits
    shifts = torch.arange(8 // bits, device=indices.device) * bits
    places = (indices.long().unsqueeze(-1) >> shifts & (1 << bits) - 1).flatten(1)[:, :kept]
    return torch.arange(kept, device=indices.device) // n * m + places


def _setup_decompress(ctx, inputs, output):
    values, indices, ctx.n, ctx.m, _ = inputs
    ctx.kept = values.shape[1]
    ctx.save_for_backward(indices)


def _decompress_backward(ctx, grad):
    (indices,) = ctx.saved_tensors
    dvalues = grad.gather(1, columns(indices, ctx.n, ctx.m, ctx.kept))
    return dvalues, None, None, None, None


# ---- autocast: as F.linear ----------------------------------------------------------------------


def _autocast(device: str):
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

    def kernel(x, values, indices, n, m, bias=None, activation=0):
        dtype = torch.get_autocast_dtype(device.lower())
        x, values, bias = (t if t is None else t.to(dtype) for t in (x, values, bias))
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return OPS.nm_linear(x, values, indices, n, m, bias, activation)

    return kernel


# ---- registration -------------------------------------------------------------------------------


def _register(library: torch.library.Library) -> None:
    for key in ("CPU", *(() if "cuda" in _load.problems else ("CUDA",))):
        library.impl("nm_linear", linear, key)
        library.impl("nm_linear_dx", _linear_dx, key)
    for name, fake in (
        ("nm_mask", _fake_mask),
        ("nm_prune", _fake_prune),
        ("nm_compress", _fake_compress),
        ("nm_decompress", _fake_decompress),
        ("nm_check", _fake_check),
        ("nm_linear", _fake_linear),
        ("nm_linear_dx", _fake_linear_dx),
        ("nm_linear_dw", _fake_linear_dw),
    ):
        torch.library.register_fake(f"fastops::{name}", fake, lib=library)
    for name, backward, setup in (
        ("nm_linear", _linear_backward, _setup_linear),
        ("nm_linear_dx", _dx_backward, _setup_dx),
        ("nm_linear_dw", _dw_backward, _setup_dw),
        ("nm_decompress", _decompress_backward, _setup_decompress),
    ):
        torch.library.register_autograd(
            f"fastops::{name}", backward, setup_context=setup, lib=library
        )
    for device in ("CPU", "CUDA"):
        library.impl("nm_linear", _autocast(device), f"Autocast{device}")


if "cpu" not in _load.problems:
    _library = torch.library.Library("fastops", "IMPL")  # kept alive: its rules go when it does
    _register(_library)
