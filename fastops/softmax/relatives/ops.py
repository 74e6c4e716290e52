"""Fake kernels of the relatives of softmax, and the registration of these with their autograd and
vmap rules."""

import torch
from torch import Tensor

from ... import _load
from ..formulas import accumulation_dtype
from ..ops import _fake_like, _fake_rows
from ..vmap import vmap_rule
from . import autograd

MAPS = ("entmax", "pladis_softmax", "softpick", "stablemax", "log_stablemax")


def _fake_map(x, dim=(-1,), **_):
    return _fake_like(x, x.dtype)


def _fake_backward(grad, source, dim=(-1,), *, dtype=None, **_):
    return _fake_like(source, dtype or source.dtype)


def _fake_alpha_backward(grad, y, dim=(-1,), **_):
    return _fake_rows(y, dim, False, accumulation_dtype(y.dtype))


def _fake_loss(x, target, dim=(-1,), **_):
    return _fake_rows(x, dim, False, accumulation_dtype(x.dtype))


def _fake_loss_backward(grad, x, target, dim=(-1,), *, dtype=None, **_):
    return _fake_like(x, dtype or x.dtype)


def _fake_topk(x: Tensor, k: int, dim: int = -1, **_):
    sizes = list(x.shape)
    if sizes:
        sizes[dim] = k
    values = torch.empty(sizes, dtype=x.dtype, device=x.device)
    indices = torch.empty(sizes, dtype=torch.int64, device=x.device)
    return values, indices, _fake_rows(x, (dim,), False, accumulation_dtype(x.dtype))


def _fake_topk_backward(grad, indices, x, lse, dim=-1, *, dtype=None, **_):
    return _fake_like(x, dtype or x.dtype)


def _register(library: torch.library.Library) -> None:
    def register(name, fake, derivative, kind=None):
        op = _load.op(name)
        torch.library.register_fake(f"fastops::{name}", fake, lib=library)
        library.impl(name, derivative(op), "Autograd", with_keyset=True)
        if kind is not None:
            library.impl(name, vmap_rule(op, kind), "FuncTorchBatched")

    for name in MAPS:
        register(name, _fake_map, lambda op, name=name: autograd.map_(op, name), "softmax")
        register(
            f"{name}_backward",
            _fake_backward,
            lambda op, name=name: autograd.map_backward(op, name),
            "softmax",
        )
    register("entmax_alpha_backward", _fake_alpha_backward, autograd.alpha_backward, "softmax")
    register("entmax_loss", _fake_loss, autograd.loss, "logsumexp")
    register("entmax_loss_backward", _fake_loss_backward, autograd.loss_backward, "logsumexp")
    register("softmax_topk", _fake_topk, autograd.topk)
    register("softmax_topk_backward", _fake_topk_backward, autograd.topk_backward)


if "cpu" not in _load.problems:
    _library = torch.library.Library("fastops", "IMPL")  # kept alive: its rules go when it does
    _register(_library)
