"""BlockSparseAttention: multi-head attention over the blocks that a mask keeps."""

from typing import Any

import torch
from torch import Tensor, nn

from ..attention import BlockMask, block_sparse_attention

__all__ = ["BlockSparseAttention"]


class BlockSparseAttention(nn.Module):
    """Projections, :func:`fastops.block_sparse_attention`, and the projection of its output.

    Args:
        embed_dim: channels of the tokens.
        num_heads: of queries; ``embed_dim`` is a multiple of it.
        num_kv_heads: of keys and values; num_heads is a multiple of it. Default num_heads.
        bias: whether the projections have one.
        sinks: whether each head has a learnable attention sink, 0 at first.
        block_mask: the mask where a call brings none; None: everything is kept. It goes where
            ``module.to`` brings the parameters, and is no part of ``state_dict()``.

    Raises:
        ValueError: head counts that do not divide.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        bias: bool = True,
        sinks: bool = False,
        block_mask: BlockMask | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        name = "fastops.nn.BlockSparseAttention"
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"{name}: expected embed_dim to be a multiple of num_heads == {num_heads}, got "
                f"{embed_dim}"
            )
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(
                f"{name}: expected num_heads to be a multiple of num_kv_heads == {num_kv_heads}, "
                f"got {num_heads}"
            )
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = embed_dim // num_heads
        self.block_mask = block_mask
        made = {"bias": bias, "device": device, "dtype": dtype}
        self.q_proj = nn.Linear(embed_dim, embed_dim, **made)
        self.k_proj = nn.Linear(embed_dim, num_kv_heads * self.head_dim, **made)
        self.v_proj = nn.Linear(embed_dim, num_kv_heads * self.head_dim, **made)
        self.out_proj = nn.Linear(embed_dim, embed_dim, **made)
        zeros = nn.Parameter(torch.zeros(num_heads, device=device)) if sinks else None
        self.register_parameter("sinks", zeros)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        block_mask: BlockMask | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """x [B, Sq, E] attends to context [B, Skv, E], or to itself; returns [B, Sq, E]."""
        context = x if context is None else context
        q, k, v = (
            proj(t).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj, t in ((self.q_proj, x), (self.k_proj, context), (self.v_proj, context))
        )
        block_mask = self.block_mask if block_mask is None else block_mask
        out = block_sparse_attention(q, k, v, block_mask, sinks=self.sinks, key_bias=key_bias)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _apply(self, fn: Any, recurse: bool = True) -> "BlockSparseAttention":
        super()._apply(fn, recurse)
        if self.block_mask is not None:
            self.block_mask = self.block_mask.to(self.q_proj.weight.device)
        return self

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"head_dim={self.head_dim}, sinks={self.sinks is not None}"
        )
