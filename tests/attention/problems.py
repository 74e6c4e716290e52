"""Attention problems: tensors, a mask of elements, and what plain PyTorch makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import fastops
from fastops.attention.reference import attention_reference
from tests.numerics import Error, assert_ratio, exact

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAMES = ("out", "lse", "grad q", "grad k", "grad v", "grad sinks", "grad key_bias")


def keep_map(kind: str, shape: tuple[int, int, int, int], seed: int = 0) -> Tensor | None:
    """bool masks of elements by name."""
    g = torch.Generator().manual_seed(seed)
    sq, skv = shape[2:]
    if kind == "dense":
        return None
    if kind == "nothing":
        return torch.zeros(shape, dtype=torch.bool)
    if kind == "causal":
        return (torch.arange(skv) <= torch.arange(sq)[:, None] + skv - sq).expand(shape)
    if kind == "every block":  # as a list
        return torch.ones(shape, dtype=torch.bool)
    if kind == "all partial":
        return torch.rand(shape, generator=g) < 0.4
    coarse = (*shape[:2], -(-sq // 16), -(-skv // 16))
    share = {"sparse": 0.15, "half": 0.5, "most": 0.9}[kind.removesuffix(" blocks")]
    blocks = torch.rand(coarse, generator=g) < share
    blocks[:, :, ::3] = False  # rows that keep nothing
    keep = blocks.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, :, :sq, :skv]
    if kind.endswith("blocks"):
        return keep.contiguous()
    return keep & (torch.rand(shape, generator=g) < 0.7)


@dataclass
class Problem:
    """Tensors in the order of the op's arguments, and a mask of elements."""

    inputs: list[Tensor]  # q, k, v, and sinks and key_bias where there are
    keep: Tensor | None
    extras: bool

    @classmethod
    def make(
        cls, dtype=torch.float32, *, batch=1, heads=2, kv_heads=2, sq=64, skv=64, d=32, dv=None,
        kind="half", mask_batch=None, mask_heads=None, extras=True, seed=0,
    ):  # fmt: skip
        g = torch.Generator().manual_seed(seed)
        dv = d if dv is None else dv

        def randn(*shape):
            return torch.randn(shape, generator=g).to(dtype)

        inputs = [
            randn(batch, heads, sq, d), randn(batch, kv_heads, skv, d),
            randn(batch, kv_heads, skv, dv),
        ]  # fmt: skip
        if extras:
            inputs.append(torch.randn(heads, generator=g))
            inputs.append(torch.randn(batch, heads, skv, generator=g))
        shape = (mask_batch or batch, mask_heads or heads, sq, skv)
        return cls(inputs, keep_map(kind, shape, seed), extras)

    def mask(self, block_size) -> fastops.BlockMask | None:
        if self.keep is None:
            return None
        return fastops.BlockMask.from_element_mask(self.keep, block_size)

    def grads_in(self) -> tuple[Tensor, Tensor]:
        """Gradients of out and lse."""
        q, v = self.inputs[0], self.inputs[2]
        g = torch.Generator().manual_seed(7)
        out = torch.randn((*q.shape[:3], v.shape[-1]), generator=g).to(q.dtype)
        return out, torch.randn(q.shape[:3], generator=g)

    def ours(self, block_size=64) -> list[Tensor]:
        """out, lse and every gradient."""
        mask = self.mask(block_size)

        def call(q, k, v, sinks=None, key_bias=None):
            return fastops.block_sparse_attention(
                q, k, v, mask, sinks=sinks, key_bias=key_bias, return_lse=True
            )

        return self._run(call, self.inputs)

    def plain(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """The same by the reference; in `dtype` throughout if one is given."""

        def call(q, k, v, sinks=None, key_bias=None):
            return attention_reference(q, k, v, self.keep, sinks=sinks, key_bias=key_bias)

        return self._run(call, [t if dtype is None else t.to(dtype) for t in self.inputs])

    def _run(self, call, inputs) -> list[Tensor]:
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        out, lse = call(*leaves)
        # A row that keeps nothing has no lse to differentiate.
        total = (out * self.grads_in()[0].to(out.dtype)).sum().to(lse.dtype)
        total = total + (torch.where(lse.isfinite(), lse, 0) * self.grads_in()[1]).sum()
        return [out, lse, *torch.autograd.grad(total, leaves)]


def magnitudes(problem: Problem, lse: Tensor) -> dict[str, Tensor]:
    """Of the gradients that cancel: the largest sum of magnitudes, instead of magnitude of sum."""
    q, k, v, *extras = (t.double() for t in problem.inputs)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scale = q.shape[-1] ** -0.5
    scores = q @ k.mT * scale + (extras[1][:, :, None] if extras else 0)
    if problem.keep is not None:
        scores = torch.where(problem.keep, scores, -torch.inf)
    known = torch.where(lse.isfinite(), lse, 0)
    weights = (scores - known[..., None]).exp()
    grad_out, grad_lse = (t.double().abs() for t in problem.grads_in())
    terms = weights @ v.abs()
    rows = (grad_out * terms).sum(-1) + grad_lse
    ds = weights * (grad_out @ v.abs().mT + rows[..., None])
    found = {
        "grad q": ds @ k.abs() * scale,
        "grad k": (ds.mT @ q.abs() * scale).unflatten(1, (-1, group)).sum(2),
        "grad key_bias": ds.sum(2),
    }
    if extras:
        found["grad sinks"] = (rows * (extras[0][:, None] - lse).exp()).sum((0, 2))
    return found


def check(problem: Problem, got: list[Tensor]) -> None:
    """The ratio rule for everything, relative to the largest element of each result. On few
    elements plain PyTorch's error may be nothing by chance: FLOOR is what it is on many."""
    wide, plain = problem.plain(torch.float64), problem.plain()
    floor, cancelling = FLOOR[problem.inputs[0].dtype], magnitudes(problem, wide[1])
    for name, ours, reference, peer in zip(NAMES, got, wide, plain, strict=False):
        size = cancelling.get(name, reference).abs()
        size = torch.where(size.isfinite(), size, 0)
        reference = exact(reference)
        largest = size.amax() if size.numel() else torch.zeros(())
        sizes = np.broadcast_to(exact(largest), reference.shape)
        try:
            assert_ratio(ours, reference, peer.to(ours.dtype), size=sizes, luck=Error(floor, floor))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


# What rounding to the dtype costs sums of a few hundred terms, relative to the largest.
FLOOR = {torch.float32: 4e-7, torch.float16: 5e-4, torch.bfloat16: 4e-3}
