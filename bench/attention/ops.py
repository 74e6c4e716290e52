"""The op and its peers: SDPA, with the mask as a tensor where there is one (of what it knows it has
no other way to be told), each of its dense kernels for GPUs, and compiled FlexAttention given the
same blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fastops
from fastops.attention.reference import attention_reference

from ..core.case import DTYPES, OURS, PEER, Accuracy, Case, Workload
from ..core.pool import Pool
from ..core.timing import Call
from ..peers import scaled_dot_product
from . import masks
from .cases import MASKS, WIDE_MASKS, random_blocks

OPS = ("attention", "attention_backward", "attention_grad", "block_mask")
WIDE_SHAPES = {shape for shapes in WIDE_MASKS.values() for shape in shapes}


class Inputs:
    """q, k, v, the gradient of out, and the mask in each candidate's form."""

    def __init__(self, case: Case, pool: Pool) -> None:
        self.case = case
        self.tensors = []
        for i, role in enumerate(("q", "k", "v", "grad")):
            t = pool.empty(case.shape, DTYPES[case.dtype], 0, f"attention {role}")
            t.normal_(generator=torch.Generator(device=t.device).manual_seed(i))
            self.tensors.append(t)
        mask = MASKS[case.variant].make(case.shape[2])
        self.mask = None if mask is None else mask.to(self.tensors[0].device)
        self.keep = None if mask is None else self.mask.to_dense()


def _flex(inputs: Inputs) -> Callable[..., Tensor]:
    """FlexAttention of the same elements: whole blocks as lists, patterns by asking the mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    keep, (batch, heads, length, _) = inputs.keep, inputs.case.shape
    kept, device = MASKS[inputs.case.variant], inputs.tensors[0].device
    if keep is None:
        return scaled_dot_product.flex(None, device.type)
    if kept.suite == "blocks":
        size = kept.block
        blocks = keep[..., ::size, ::size].contiguous()
        lists = scaled_dot_product.block_mask(blocks, size, size, length, length)
        return scaled_dot_product.flex(lists, device.type)
    several = keep.shape[1] > 1

    def element(b, h, q, kv):
        return keep[0, h if several else 0, q, kv]

    blocks = create_block_mask(
        element, batch, heads if several else None, length, length, device=device
    )
    return scaled_dot_product.flex(blocks, device.type)


def prepare(case: Case, pool: Pool, peers: tuple[str, ...]) -> Workload:
    """Buffers and calls of a case; every candidate allocates its output."""
    if case.op == "block_mask":
        return masks.prepare(case)
    i = Inputs(case, pool)
    q, k, v, grad = i.tensors
    kept = MASKS[case.variant]
    forwards: dict[str, Callable[..., Tensor]] = {
        OURS: partial(fastops.block_sparse_attention, block_mask=i.mask),
        PEER: partial(F.scaled_dot_product_attention, attn_mask=i.keep),
    }
    if "own dense" in peers and kept.suite == "blocks" and case.op == "attention":
        forwards["own dense"] = fastops.block_sparse_attention
    if "blocks of 64" in peers and kept.block < 64:
        same = random_blocks(case.shape[2], kept.density, 64).to(q.device)
        forwards["blocks of 64"] = partial(fastops.block_sparse_attention, block_mask=same)
    if i.keep is None and q.dtype != torch.float32:
        dense = [peer for peer in scaled_dot_product.BACKENDS if peer in peers]
        forwards |= {peer: scaled_dot_product.dense(peer) for peer in dense}
    if "flex" in peers and (kept.suite == "patterns" or case.shape in WIDE_SHAPES):
        forwards["flex"] = _flex(i)
    if case.op == "attention":
        calls = {name: [_inference(f, q, k, v)] for name, f in forwards.items()}
    else:
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        if i.mask is not None:
            i.mask.transposed()  # made once per mask
        run = _training if case.op == "attention_grad" else _backward
        calls = {name: [run(f, leaves, grad)] for name, f in forwards.items()}
    moved = 8 if case.op == "attention_backward" else 4  # q, k, v, out, and their gradients
    traffic = moved * q.numel() * q.element_size()
    verify = _accuracy if case.op == "attention" else _grad_accuracy
    return Workload(calls, traffic, partial(verify, i))


def _inference(forward: Callable[..., Tensor], *tensors: Tensor) -> Call:
    return torch.no_grad()(lambda: forward(*tensors))


def _training(forward: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor) -> Call:
    return lambda: torch.autograd.grad(forward(*leaves), leaves, grad)


def _backward(forward: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor) -> Call:
    """The gradients of one forward, which the first call makes: outside of what is timed."""
    out = cache(lambda: forward(*leaves))
    return lambda: torch.autograd.grad(out(), leaves, grad, retain_graph=True)


def _last_rows(i: Inputs) -> tuple[slice, Tensor | None]:
    """Which rows of the first head are checked, and what they keep."""
    length = i.case.shape[2]
    rows = slice(max(0, length - 256), length)
    return rows, None if i.keep is None else i.keep[:1, :1, rows]


def _errors(ours: Sequence[Tensor], plain: Sequence[Tensor], wide: Sequence[Tensor]) -> Accuracy:
    def error(tensors: Sequence[Tensor]) -> float:
        return max(
            ((t.double() - w).abs() / w.abs().amax(-1, keepdim=True).clamp_min(1e-300)).max().item()
            for t, w in zip(tensors, wide, strict=True)
        )

    return Accuracy(error(ours), error(plain), torch.finfo(ours[0].dtype).eps / 2)


def _accuracy(i: Inputs) -> Accuracy:
    """The last rows of the first head, against float64 and plain PyTorch."""
    rows, keep = _last_rows(i)
    ours = fastops.block_sparse_attention(*i.tensors[:3], i.mask)[:1, :1, rows]
    q, k, v = (t[:1, :1] for t in i.tensors[:3])
    plain = attention_reference(q[:, :, rows], k, v, keep)[0]
    wide = attention_reference(q[:, :, rows].double(), k.double(), v.double(), keep)[0]
    return _errors([ours], [plain], [wide])


def _grad_accuracy(i: Inputs) -> Accuracy:
    """The gradients of what the last rows of the first head say, in them and in every key and value
    of that head: a call of the full size, whose other rows have a gradient of zero."""
    rows, keep = _last_rows(i)
    grad = torch.zeros_like(i.tensors[3])
    grad[:1, :1, rows] = i.tensors[3][:1, :1, rows]
    forward = partial(fastops.block_sparse_attention, block_mask=i.mask)
    leaves = [t.detach().requires_grad_() for t in i.tensors[:3]]
    dq, dk, dv = torch.autograd.grad(forward(*leaves), leaves, grad)

    def reference(dtype: torch.dtype) -> tuple[Tensor, ...]:
        q, k, v, g = (t[:1, :1].to(dtype) for t in (*i.tensors[:3], grad))
        some = [t.detach().requires_grad_() for t in (q[:, :, rows], k, v)]
        out = attention_reference(*some, keep)[0]
        return torch.autograd.grad(out, some, g[:, :, rows])

    ours = (dq[:1, :1, rows], dk[:1, :1], dv[:1, :1])
    return _errors(ours, reference(dq.dtype), reference(torch.float64))
