"""Token merging for the VisionTransformer of timm (1.x, blocks with a fused qkv projection)."""

from __future__ import annotations

import torch
from torch import nn

from . import _vit
from ._vit import TokenMerging, unpatch

__all__ = ["TokenMerging", "patch", "unpatch"]

_PARTS = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")


def patch(
    model: nn.Module, r: _vit.R, *, proportional: bool = True, trace: bool = True
) -> nn.Module:
    """Merges r tokens in every block of a VisionTransformer, between attention and MLP.

    Arguments, result and errors as :func:`fastops.integrations.transformers.patch`. Class and
    distillation token are found by ``num_prefix_tokens``, of which there may be two at most.
    """
    name = "fastops.integrations.timm.patch"
    _vit.check_unpatched(name, model)
    blocks = list(getattr(model, "blocks", ()))
    fits = blocks and all(
        all(hasattr(block, part) for part in _PARTS) and hasattr(block.attn, "qkv")
        for block in blocks
    )
    prefix = getattr(model, "num_prefix_tokens", None)
    if not fits or prefix is None:
        raise TypeError(f"{name}: expected a VisionTransformer of timm, got {type(model).__name__}")
    if prefix > 2:
        raise ValueError(f"{name}: expected at most 2 prefix tokens, got {prefix}")
    state = TokenMerging(
        _vit.schedule(name, r, len(blocks)), prefix >= 1, prefix == 2, proportional, trace
    )
    _vit.attach(model, state)
    for index, block in enumerate(blocks):
        _vit.keep_output(state, block.attn.qkv)
        _vit.replace_forward(state, block, _forward, index)
    return model


def _forward(
    block: nn.Module,
    state: TokenMerging,
    index: int,
    x: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    **options: object,  # is_causal, where timm has it
) -> torch.Tensor:
    state.begin(index)
    bias = state.attention_bias(x.dtype)
    if bias is not None:
        attn_mask = bias if attn_mask is None else attn_mask + bias
    given = {name: value for name, value in options.items() if value}
    if attn_mask is not None:
        given["attn_mask"] = attn_mask
    x = x + block.drop_path1(block.ls1(block.attn(block.norm1(x), **given)))
    fused, heads = state.take_kept(), block.attn.num_heads
    keys = fused.view(*fused.shape[:-1], 3, heads, -1)[:, :, 1].transpose(1, 2)
    x = state.merge(x, keys, index)
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
