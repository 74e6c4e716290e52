"""Hugging Face transformers (5.x): token merging for its ViT, block-sparse attention for models."""

from __future__ import annotations

from torch import Tensor, nn

from . import _vit
from ._attention import register
from ._vit import TokenMerging, unpatch

__all__ = ["TokenMerging", "patch", "register", "unpatch"]

# Layers that do what _forward does, and no more: others have scales, windows or a decoder besides.
_LAYERS = ("ViTLayer", "DeiTLayer", "ViTMSNLayer", "IJepaLayer")


def patch(
    model: nn.Module, r: _vit.R, *, proportional: bool = True, trace: bool = True
) -> nn.Module:
    """Merges r tokens in every layer of a ViT, between attention and MLP, by its keys.

    Args:
        model: A ViT, DeiT, ViTMSN or IJepa model, or one that contains it. Changed in place;
            :func:`unpatch` undoes. Class and distillation token, where there are, neither merge nor
            receive.
        r: Tokens per layer: a number, a list, or ``(r, inflect)``.
        proportional: Add the logarithm of sizes to the attention scores. Needs the "sdpa" or
            "eager" attention.
        trace: Keep the plan from input tokens to output tokens in ``model.token_merging.source``.

    Returns:
        The model. ``last_hidden_state`` has fewer tokens, the class token first.

    Raises:
        TypeError: No ViT in it, or r of the wrong type.
        ValueError: Already patched, or an attention implementation without additive masks.
    """
    name = "fastops.integrations.transformers.patch"
    _vit.check_unpatched(name, model)
    found = [m for m in model.modules() if hasattr(m, "embeddings") and _layers(m)]
    if not found:
        raise TypeError(f"{name}: expected a model with a ViT of transformers in it")
    vit = found[0]
    if proportional and vit.config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"{name}: expected sdpa or eager attention for proportional=True, got "
            f"{vit.config._attn_implementation}"
        )
    layers = _layers(vit)
    class_token, distill_token = (
        getattr(vit.embeddings, token, None) is not None
        for token in ("cls_token", "distillation_token")
    )
    state = TokenMerging(
        _vit.schedule(name, r, len(layers)), class_token, distill_token, proportional, trace
    )
    _vit.attach(model, state)
    for index, layer in enumerate(layers):
        _vit.keep_output(state, layer.attention.k_proj)
        _vit.replace_forward(state, layer, _forward, index)
    return model


def _layers(module: nn.Module) -> list[nn.Module]:
    layers = getattr(module, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return []
    return list(layers) if all(type(layer).__name__ in _LAYERS for layer in layers) else []


def _forward(
    layer: nn.Module,
    state: TokenMerging,
    index: int,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: object,
) -> Tensor:
    state.begin(index)
    bias = state.attention_bias(hidden_states.dtype)
    if bias is not None:
        attention_mask = bias if attention_mask is None else attention_mask + bias
    attended, _ = layer.attention(layer.layernorm_before(hidden_states), attention_mask, **kwargs)
    x = layer.dropout(attended) + hidden_states
    key = state.take_kept()
    heads = key.view(*key.shape[:-1], -1, layer.attention.head_dim).transpose(1, 2)
    x = state.merge(x, heads, index)
    return layer.dropout(layer.mlp(layer.layernorm_after(x))) + x
