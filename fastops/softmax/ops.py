"""What torch needs to know of the softmax ops besides their kernels: fake (meta) kernels, autocast
rules, and the registration of these with the autograd and vmap rules. Schemas are in
csrc/bindings/library.cpp."""

import torch
from torch import Tensor

from .. import _load
from . import autograd
from .formulas import accumulation_dtype, dims_of
from .vmap import vmap_rule

# ---- Fake kernels: true shapes, strides and dtypes ----------------------------------------------


def _fake_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    if x.is_contiguous():
        return torch.empty(x.shape, dtype=dtype, device=x.device)
    return torch.empty_like(x, dtype=dtype)


def _fake_rows(x: Tensor, dim, keepdim: bool, dtype: torch.dtype) -> Tensor:
    dims = dims_of(x, dim)
    sizes = [1 if d in dims else size for d, size in enumerate(x.shape) if keepdim or d not in dims]
    return torch.empty(sizes, dtype=dtype, device=x.device)


def _fake_normalize(x, dim=(-1,), *, dtype=None, **_):
    return _fake_like(x, dtype or x.dtype)


def _fake_normalize_lse(x, dim=(-1,), *, dtype=None, **_):
    dtype = dtype or x.dtype
    lse = _fake_rows(x, dim, False, accumulation_dtype(x.dtype, dtype))
    return _fake_like(x, dtype), lse


def _fake_plain(x, dim):
    return _fake_like(x, x.dtype)


def _fake_logsumexp(x, dim=(-1,), keepdim=False, **_):
    return _fake_rows(x, dim, keepdim, accumulation_dtype(x.dtype))


def _fake_backward(grad, y, dim=(-1,), *, dtype=None, **_):
    return _fake_like(y, dtype or y.dtype)


def _fake_logsumexp_backward(grad, x, lse, dim=(-1,), *, dtype=None, **_):
    return _fake_like(x, dtype or x.dtype)


def _fake_out(*_, out, **__):
    return out


def _fake_out_lse(*_, out, lse, **__):
    return out, lse


# ---- Autocast: as torch does, half inputs give float32 on CUDA and stay as they are on the CPU ---


def _autocast_cuda(op):
    def kernel(x, *args, dtype=None, **kwargs):
        if dtype is None and x.dtype in (torch.float16, torch.bfloat16):
            dtype = torch.float32
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_CUDA):
            return op(x, *args, dtype=dtype, **kwargs)

    return kernel


def _as_full(op):
    return lambda x, dim: op(x, [dim])


_AUTOCAST_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


# ---- Registration -------------------------------------------------------------------------------


def _register(library: torch.library.Library) -> None:
    def register(name, fake, derivative=None, autocast=False, kind=None):
        op = _load.op(*name.split(".", 1))
        torch.library.register_fake(f"fastops::{name}", fake, lib=library)
        if derivative is not None:
            library.impl(name, derivative, "Autograd", with_keyset=True)
        if autocast:
            library.impl(name, _autocast_cuda(op), "AutocastCUDA")
        if kind is not None:
            library.impl(name, vmap_rule(op, kind), "FuncTorchBatched")

    for kind in ("softmax", "log_softmax"):
        for name, fake, fake_out in (
            (kind, _fake_normalize, _fake_out),
            (f"{kind}_lse", _fake_normalize_lse, _fake_out_lse),
        ):
            register(name, fake, autograd.normalize(_load.op(name), kind), True, kind)
            register(f"{name}.out", fake_out)
        # The plain op has no gradient and no rules of its own: a batch may hide that x wants one.
        register(f"_{kind}", _fake_plain)
        for key in ("FuncTorchBatched", "AutocastCUDA"):
            library.impl(f"_{kind}", _as_full(_load.op(kind)), key)
        register(f"_{kind}.out", _fake_out)

        name = f"{kind}_backward"
        derivative = autograd.normalize_backward(_load.op(name), kind)
        register(name, _fake_backward, derivative, kind=kind)
        register(f"{name}.out", _fake_out)

    name = "logsumexp"  # its result is in the accumulation dtype already: nothing for autocast
    register(name, _fake_logsumexp, autograd.logsumexp(_load.op(name)), kind=name)
    register(f"{name}.out", _fake_out)
    name = "logsumexp_backward"
    derivative = autograd.logsumexp_backward(_load.op(name))
    register(name, _fake_logsumexp_backward, derivative, kind="logsumexp")
    register(f"{name}.out", _fake_out)


if "cpu" not in _load.problems:
    _library = torch.library.Library("fastops", "IMPL")  # kept alive: its rules go when it does
    _register(_library)
