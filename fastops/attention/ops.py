"""What torch needs to know of the attention ops besides their kernels: fake (meta) kernels,
derivatives, autocast and vmap rules. Schemas are in csrc/bindings/library.cpp."""

import torch

from .. import _load
from . import autograd


def _fake_attention(q, k, v, mask, mask_shape, scale, sinks=None, key_bias=None):
    out = q.new_empty((*q.shape[:3], v.shape[-1]))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


def _fake_backward(
    grad_out, grad_lse, q, k, v, out, lse, mask, mask_shape, scale, sinks, key_bias, wanted
):
    grads = [t.new_empty(t.shape if w else 0) for t, w in zip((q, k, v), wanted, strict=False)]
    rows = ((q.shape[1],), (*q.shape[:2], k.shape[2]))
    for shape, want in zip(rows, wanted[3:], strict=True):
        grads.append(q.new_empty(shape if want else 0, dtype=torch.float32))
    return grads


def _vmap_rule(op):
    """One call per sample: their masks may differ in any way."""

    def rule(info, in_dims, *args):
        def of(value, dim, i):
            if isinstance(dim, list | tuple):
                return [of(v, d, i) for v, d in zip(value, dim, strict=True)]
            return value if dim is None else value.select(dim, i)

        results = [
            op(*(of(v, d, i) for v, d in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return type(results[0])(stacked), type(results[0])([0] * len(stacked))

    return rule


def _autocast(device: str):
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

    def kernel(q, k, v, mask, mask_shape, scale, sinks=None, key_bias=None):
        dtype = torch.get_autocast_dtype(device.lower())
        q, k, v = (t.to(dtype) for t in (q, k, v))
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return torch.ops.fastops.block_sparse_attention(
                q, k, v, mask, mask_shape, scale, sinks, key_bias
            )

    return kernel


def _register(library: torch.library.Library) -> None:
    for name, fake in (
        ("block_sparse_attention", _fake_attention),
        ("block_sparse_attention_backward", _fake_backward),
    ):
        torch.library.register_fake(f"fastops::{name}", fake, lib=library)
        torch.library.register_vmap(f"fastops::{name}", _vmap_rule(_load.op(name)), lib=library)
    for name, kernel in autograd.KERNELS.items():
        library.impl(name, kernel(_load.op(name)), "Autograd", with_keyset=True)
    for device in ("CPU", "CUDA"):
        library.impl("block_sparse_attention", _autocast(device), f"Autocast{device}")


if "cpu" not in _load.problems:
    _library = torch.library.Library("fastops", "IMPL")  # kept alive: its rules go when it does
    _register(_library)
