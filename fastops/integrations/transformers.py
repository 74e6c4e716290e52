"""Hugging Face transformers (5.x): token merging for its ViT, block-sparse attention for models."""

from __future__ import annotations

from torch import nn

from . import _vit
from ._attention import register
from ._vit import TokenMerging, unpatch

__all__ = ["TokenMerging", "patch", "register", "unpatch"]

_PARTS = ("attention", "layernorm_before", "layernorm_after", "mlp", "dropout")


def patch(
    model: nn.Module, r: _vit.R, *, proportional: bool = True, trace: bool = True
) -> nn.Module:
    """Merges r tokens in every layer of a ViT, between attention and MLP, by its keys.

    Args:
        model: ``ViTModel``, or a model that contains one. Changed in place; :func:`unpatch` undoes.
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
    state = TokenMerging(_vit.schedule(name, r, len(layers)), True, False, proportional, trace)
    _vit.attach(name, model, state, vit)
    for index, layer in enumerate(layers):
        _patch_layer(state, layer, index)
    return model


def _layers(module: nn.Module) -> list[nn.Module]:
    layers = getattr(module, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return []
    fits = all(
        all(hasattr(layer, part) for part in _PARTS) and hasattr(layer.attention, "k_proj")
        for layer in layers
    )
    return list(layers) if fits else []


def _patch_layer(state: TokenMerging, layer: nn.Module, index: int) -> None:
    keys = _vit.keep_output(state, layer.attention.k_proj)

    def forward(hidden_states, attention_mask=None, **kwargs):
        bias = state.attention_bias(hidden_states.dtype)
        if bias is not None:
            attention_mask = bias if attention_mask is None else attention_mask + bias
        attended, _ = layer.attention(
            layer.layernorm_before(hidden_states), attention_mask, **kwargs
        )
        x = layer.dropout(attended) + hidden_states
        key = keys.pop("last")
        heads = key.view(*key.shape[:-1], -1, layer.attention.head_dim).transpose(1, 2)
        x = state.merge(x, heads, index)
        return layer.dropout(layer.mlp(layer.layernorm_after(x))) + x

    _vit.replace_forward(state, layer, forward)
