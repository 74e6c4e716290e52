"""Block-sparse attention in the attention registry of Hugging Face transformers (5.x)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import BlockMask, block_sparse_attention
from ..attention._arguments import block_pair

_NAME = "fastops.integrations.transformers"


def register(name: str = "fastops", block_size: int = 64) -> None:
    """Adds block-sparse attention to the registry, for ``attn_implementation=name``.

    Masks become :class:`fastops.BlockMask`: causal ones and none at all in closed form; others
    (padding, windows, packed sequences) from the function that transformers has for them, looked at
    once a forward pass, in time that follows Sq * Skv. So cost follows the blocks kept, grouped
    heads are not repeated, and sinks (gpt-oss) are part of the kernel. Also differentiable.

    Args:
        name: What models call it.
        block_size: Of masks: 16, 32, 64 or 128.

    Raises:
        ImportError: no transformers.
        TypeError, ValueError: another block size. Later, from a model: dropout, soft capping, a
            position bias or an additive mask, which the kernels do not have.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    block_pair(f"{_NAME}.register", block_size)
    AttentionInterface.register(name, functools.partial(attention, block_size=block_size))
    AttentionMaskInterface.register(name, functools.partial(make_mask, block_size=block_size))


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Tensor | BlockMask | None = None,
    device: torch.device | str = "cpu",
    *,
    block_size: int,
    **kwargs: Any,
) -> BlockMask | None:
    """A mask as transformers describes one: a function of positions, and padding [B, Skv]. Or one
    that was made before the model was called, as for a static cache."""
    from transformers import masking_utils as masks

    if isinstance(attention_mask, BlockMask):
        return attention_mask
    lengths, offset = (int(q_length), int(kv_length)), int(q_offset) - int(kv_offset)
    padded = attention_mask is not None and not bool(attention_mask.all())
    if not padded:
        if mask_function is masks.bidirectional_mask_function:
            return None
        causal = mask_function in (None, masks.causal_mask_function)
        if causal:
            return BlockMask.causal(lengths, block_size, device, offset)
    fn = mask_function or masks.causal_mask_function
    if padded:
        padding = masks.prepare_padding_mask(attention_mask, kv_length, kv_offset)
        fn = masks.and_masks(fn, masks.padding_mask_function(padding.to(device)))
    fn = masks.add_offsets_to_mask_function(fn, q_offset, kv_offset)
    return BlockMask.from_fn(fn, lengths, block_size, batch=int(batch_size), device=device)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    *,
    block_size: int,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[B, Sq, Hq, Dv] of heads-first q, k and v."""
    if dropout:
        raise ValueError(f"{_NAME}: expected no dropout in the attention, got {dropout}")
    for arg in ("softcap", "position_bias"):
        if kwargs.get(arg) is not None:
            raise ValueError(f"{_NAME}: expected no {arg}, which block-sparse attention lacks")
    mask = attention_mask
    if mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if causal and query.shape[2] > 1:
            # As SDPA aligns it: a cache that is longer has nothing in it yet.
            key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
            mask = BlockMask.causal((query.shape[2], key.shape[2]), block_size, query.device)
    elif isinstance(mask, Tensor):
        if mask.dtype != torch.bool:
            raise ValueError(
                f"{_NAME}: expected a mask of dtype torch.bool, got an additive one ({mask.dtype})"
            )
        mask = mask.expand(*mask.shape[:2], query.shape[2], key.shape[2])
        mask = BlockMask.from_element_mask(mask, block_size)
    query, key, value = (
        t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous() for t in (query, key, value)
    )
    out = block_sparse_attention(query, key, value, mask, scale=scaling, sinks=s_aux)
    return out.transpose(1, 2).contiguous(), None
