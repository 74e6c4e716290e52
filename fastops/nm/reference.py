"""N:M sparse weights in plain PyTorch: what the kernels must compute.

Products are taken in float64 and rounded once. These functions make no attempt to be fast.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .pattern import parse

__all__ = [
    "nm_compress_reference",
    "nm_decompress_reference",
    "nm_linear_reference",
    "nm_mask_reference",
    "nm_prune_reference",
    "pack_indices",
    "unpack_indices",
]

ACTIVATIONS = {
    None: lambda y: y,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


def _rank(t: Tensor) -> Tensor:
    """Float64 values that order as the contract says: NaN above everything, +0 equal to -0."""
    return torch.where(t.isnan(), torch.inf, t.double() + 0.0), t.isnan()


def nm_mask_reference(w: Tensor, pattern: str, *, scores: Tensor | None = None) -> Tensor:
    """:func:`fastops.nm_mask`: rank every element of a group against every other."""
    n, m = parse("reference", pattern)
    groups = (w.shape[0], -1, m)
    size, size_nan = (t.reshape(groups) for t in _rank(w.abs()))
    score, score_nan = (size, size_nan) if scores is None else (
        t.reshape(groups) for t in _rank(scores)
    )  # fmt: skip
    keys = torch.stack([score_nan.double(), score, size_nan.double(), size], -1)
    index = torch.arange(m, device=w.device)
    a, b = keys.unsqueeze(-2), keys.unsqueeze(-3)  # a[i], b[j]
    before = (index[None, :] < index[:, None]).expand(a.shape[0], a.shape[1], m, m)
    for k in reversed(range(keys.shape[-1])):
        before = (b[..., k] > a[..., k]) | ((b[..., k] == a[..., k]) & before)
    return (before.sum(-1) < n).reshape(w.shape)


def nm_prune_reference(w: Tensor, pattern: str, *, scores: Tensor | None = None) -> Tensor:
    """:func:`fastops.nm_prune`."""
    return torch.where(nm_mask_reference(w, pattern, scores=scores), w, torch.zeros_like(w))


def pack_indices(places: Tensor, m: int) -> Tensor:
    """Places in their groups, [out, kept], as the stored bytes."""
    bits = parse("reference", f"1:{m}").index_bits
    per_byte = 8 // bits
    padded = F.pad(places, (0, -places.shape[1] % per_byte))
    shifts = torch.arange(per_byte, device=places.device) * bits
    shifted = padded.reshape(places.shape[0], -1, per_byte) << shifts
    return shifted.sum(-1).to(torch.uint8)


def unpack_indices(indices: Tensor, m: int, kept: int) -> Tensor:
    """The inverse of :func:`pack_indices`, int64."""
    bits = parse("reference", f"1:{m}").index_bits
    shifts = torch.arange(8 // bits, device=indices.device) * bits
    places = indices.long().unsqueeze(-1) >> shifts & (1 << bits) - 1
    return places.flatten(1)[:, :kept]


def nm_compress_reference(
    w: Tensor, pattern: str, *, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(values, indices) of a weight that satisfies the pattern, in the stored form."""
    n, m = parse("reference", pattern)
    kept = (w != 0 if mask is None else mask).reshape(w.shape[0], -1, m)
    if (kept.sum(-1) > n).any():
        raise ValueError("the weight does not satisfy the pattern")
    # Kept places first, then the free ones, both rising; of these the first n, in order.
    order = torch.sort((~kept).to(torch.uint8), dim=-1, stable=True).indices
    places = order[..., :n].sort(-1).values
    values = torch.where(kept, w.reshape(kept.shape), torch.zeros((), dtype=w.dtype))
    values = values.gather(-1, places)
    return values.flatten(1), pack_indices(places.flatten(1), m)


def nm_decompress_reference(
    values: Tensor, indices: Tensor, pattern: str, in_features: int
) -> Tensor:
    """The dense weight of a stored one."""
    n, m = parse("reference", pattern)
    places = unpack_indices(indices, m, values.shape[1])
    columns = torch.arange(values.shape[1], device=values.device) // n * m + places
    return values.new_zeros(values.shape[0], in_features).scatter(1, columns, values)


def nm_linear_reference(
    x: Tensor, w: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """``activation(x @ w.T + bias)`` of a dense weight, in float64, rounded once to x's dtype."""
    y = x.double() @ w.double().t()
    if bias is not None:
        y = y + bias.double()
    return ACTIVATIONS[activation](y).to(x.dtype)
