"""What block-sparse attention means, in plain PyTorch: O(Sq Skv) memory, any floating dtype."""

import torch
from torch import Tensor


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    sinks: Tensor | None = None,
    key_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of attention with a mask of elements.

    Args:
        q: [B, Hq, Sq, D]. k: [B, Hkv, Skv, D]. v: [B, Hkv, Skv, Dv]. Hq is a multiple of Hkv; query
            head h attends to key head ``h // (Hq // Hkv)``.
        mask: bool, broadcasts to [B, Hq, Sq, Skv], True where a score counts.
        scale: of the scores; default ``D ** -0.5``.
        sinks: [Hq], a score per head that takes weight and has no value.
        key_bias: [B, Skv] or [B, Hq or 1, Skv], added to the scores of a key.

    Returns:
        out [B, Hq, Sq, Dv], and the natural logarithm of the summed exponentials [B, Hq, Sq].
        A row where nothing counts has out 0, lse -inf (its sink where there is one), no gradient.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if key_bias is not None:
        bias = key_bias if key_bias.ndim == 3 else key_bias[:, None]
        scores = scores + bias[:, :, None].to(scores.dtype)
    if mask is not None:
        scores = torch.where(mask, scores, -torch.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column), -1)
    if scores.shape[-1] == 0:
        return (q @ k.mT) @ v, scores.new_full(scores.shape[:3], -torch.inf)
    most = scores.detach().amax(-1, keepdim=True)
    most = torch.where(most == -torch.inf, 0, most)
    weights = torch.where(scores == -torch.inf, 0, (scores - most).exp())
    total = weights.sum(-1, keepdim=True)
    known = torch.where(total == 0, 1, total)
    lse = torch.where(total == 0, -torch.inf, known.log() + most).squeeze(-1)
    return (weights / known)[..., : k.shape[-2]] @ v, lse
