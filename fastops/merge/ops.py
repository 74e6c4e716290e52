"""What torch needs to know of the merge ops besides their kernels: fake (meta) kernels, derivatives
and vmap rules. Schemas are in csrc/bindings/library.cpp."""

import torch
from torch import Tensor

from .. import _load
from . import autograd


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """What sums and sizes are kept in: float64 as soon as one tensor is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


# ---- Fake kernels -------------------------------------------------------------------------------


def _like(t: Tensor, rows: int) -> Tensor:
    return t.new_empty((*t.shape[:-2], rows, t.shape[-1]))


def _fake_match(metric, tokens=None, num_src=0, num_dst=0, k=2, *_, **__):
    n = metric.shape[-2]
    sources = n - n // k if tokens is None else num_src
    shape = (metric.shape[0], sources)
    scores = metric.new_empty(shape, dtype=accumulation_dtype(metric))
    return scores, metric.new_empty(shape, dtype=torch.int32)


def _fake_plan(scores, matches, num_tokens, r, num_out, *_, **__):
    batch = scores.shape[0]
    shapes = ((batch, num_tokens), (batch, num_out + 1), (batch, num_tokens), (batch,))
    return tuple(matches.new_empty(shape) for shape in shapes)


def _fake_compose(map, next, num_out):
    return tuple(
        map.new_empty(shape) for shape in (map.shape, (map.shape[0], num_out + 1), map.shape)
    )


def _fake_select(scores, keep, pool, *_, **__):
    return scores.new_empty(scores.shape, dtype=torch.int32)


def _fake_merge(xs, map, offsets, perm, size, mode):
    rows = offsets.shape[1] - 1
    sizes = [map.new_empty((map.shape[0], rows), dtype=accumulation_dtype(*xs)) for _ in range(2)]
    return [_like(x, rows) for x in xs], *sizes


def _fake_merge_backward(
    grads, xs, ys, map, offsets, perm, size, merged, grad_merged, mode, size_grad
):
    shape = (map.shape[0] if size_grad else 0, map.shape[1])
    dsize = map.new_empty(shape, dtype=accumulation_dtype(*grads))
    return [_like(g, map.shape[1]) for g in grads], dsize


def _fake_unmerge(y, map, offsets, perm, residual=None):
    return _like(y, map.shape[1])


def _fake_out(*_, **__):
    return None


# ---- vmap: the batch joins the samples, and the op is called once --------------------------------


def _fold(info, value, dim, samples: int | None = None):
    """[V, B, ...] -> [V * B, ...] of a tensor that may lack the batch, or be shared by samples."""
    if not isinstance(value, Tensor):
        return value
    value = value.unsqueeze(0) if dim is None else value.movedim(dim, 0)
    value = value.expand(info.batch_size, *value.shape[1:])
    if samples is not None and value.shape[1] != samples:
        value = value.expand(-1, samples, *value.shape[2:])
    return value.reshape(-1, *value.shape[2:]).contiguous()


def _unfold(info, value):
    if isinstance(value, list | tuple):
        return type(value)(_unfold(info, v) for v in value)
    samples = value.shape[0] // info.batch_size if value.shape[0] else 0
    return value.reshape(info.batch_size, samples, *value.shape[1:])


def _dims_of(value):
    return type(value)(_dims_of(v) for v in value) if isinstance(value, list | tuple) else 0


def _vmap_rule(op):
    def rule(info, in_dims, *args):
        def per_sample(value, dim):
            return value.shape[1 if dim == 0 else 0]

        first, dim = args[0], in_dims[0]
        if isinstance(first, list):  # the plan's map tells
            names = [a.name for a in op._schema.arguments]
            at = names.index("map")
            samples = per_sample(args[at], in_dims[at])
        else:
            samples = per_sample(first, dim)

        def fold(value, dim):
            if isinstance(value, list | tuple):
                dims = dim if isinstance(dim, list | tuple) else [dim] * len(value)
                return [fold(v, d) for v, d in zip(value, dims, strict=True)]
            return _fold(info, value, dim, samples)

        result = op(*(fold(v, d) for v, d in zip(args, in_dims, strict=True)))
        out = _unfold(info, result)
        return out, _dims_of(out)

    return rule


# ---- Registration -------------------------------------------------------------------------------


def _register(library: torch.library.Library) -> None:
    fakes = {
        "token_match": _fake_match,
        "token_plan": _fake_plan,
        "plan_compose": _fake_compose,
        "token_select": _fake_select,
        "merge_tokens": _fake_merge,
        "merge_tokens_backward": _fake_merge_backward,
        "unmerge_tokens": _fake_unmerge,
    }
    for name in ("merge_tokens.out", "unmerge_tokens.out"):
        torch.library.register_fake(f"fastops::{name}", _fake_out, lib=library)
    for name, fake in fakes.items():
        torch.library.register_fake(f"fastops::{name}", fake, lib=library)
        torch.library.register_vmap(f"fastops::{name}", _vmap_rule(_load.op(name)), lib=library)
    for name, kernel in autograd.KERNELS.items():
        library.impl(name, kernel(_load.op(name)), "Autograd", with_keyset=True)


if "cpu" not in _load.problems:
    _library = torch.library.Library("fastops", "IMPL")  # kept alive: its rules go when it does
    _register(_library)
