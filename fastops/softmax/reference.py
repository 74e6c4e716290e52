"""The softmax family in plain PyTorch: what the kernels must compute.

Everything is computed in float64 and rounded once, and autograd flows through it, so these
functions define values and gradients alike. They make no attempt to be fast.

Score of element j of a row: ``s[j] = x[j] * scale + bias[j]``. It takes part iff ``mask[j]``,
``j < lengths`` and, under ``causal``, ``j <= query + offset``; what does not take part never
influences anything, not even as NaN. A row is *empty* when no score is above -inf.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["log_softmax_reference", "logsumexp_reference", "softmax_reference"]


class _Scores(NamedTuple):
    s: Tensor  # float64 scores, -inf where excluded
    valid: Tensor  # bool, x's shape
    dims: tuple[int, ...]  # ascending, non-negative


def per_row(t: Tensor, rank: int, dims: tuple[int, ...]) -> Tensor:
    """One value per row, brought to x's rank with size 1 in the reduced dims."""
    if t.ndim == rank:
        return t
    t = t.reshape((1,) * (rank - len(dims) - t.ndim) + tuple(t.shape))
    for d in dims:
        t = t.unsqueeze(d)
    return t


def participation(x: Tensor, dims: tuple[int, ...], mask, lengths, causal) -> Tensor:
    """Which elements of x take part, as bools of x's shape. `dims`: ascending, non-negative."""
    valid = torch.ones(x.shape, dtype=torch.bool, device=x.device)
    if mask is not None:
        valid = valid & mask
    if lengths is not None:
        # Positions count the reduced elements in row-major order of the reduced dims.
        sizes = [size if d in dims else 1 for d, size in enumerate(x.shape)]
        position = torch.arange(math.prod(sizes), device=x.device).reshape(sizes)
        valid = valid & (position < per_row(lengths, x.ndim, dims))
    if causal:
        queries, keys = x.shape[-2:]
        offset = keys - queries if causal == "lower_right" else 0
        key = torch.arange(keys, device=x.device)
        query = torch.arange(queries, device=x.device)
        valid = valid & (key <= query[:, None] + offset)
    return valid


def _scores(x, dim, mask, bias, lengths, causal, scale) -> _Scores:
    rank = max(x.ndim, 1)
    dims = tuple(sorted(d % rank for d in ((dim,) if isinstance(dim, int) else dim)))
    if x.ndim == 0:
        x = x.reshape(1)
        bias = None if bias is None else bias.reshape(1)
        mask = None if mask is None else mask.reshape(1)

    valid = participation(x, dims, mask, lengths, causal)

    # Excluded values are replaced before any arithmetic: 0 * NaN would leak into gradients.
    s = torch.where(valid, x.double(), 0.0)
    if isinstance(scale, Tensor):
        s = s * per_row(scale.double(), rank, dims)
    elif scale is not None:
        s = s * scale
    if bias is not None:
        s = s + torch.where(valid, bias.double(), 0.0)
    return _Scores(torch.where(valid, s, -math.inf), valid, dims)


def _row_parts(s: Tensor, dims: tuple[int, ...]):
    """(shifted scores, their exponentials' sum, lse, emptiness), the last three with kept dims."""
    if math.prod(s.shape[d] for d in dims) == 0:
        rows = [1 if d in dims else size for d, size in enumerate(s.shape)]
        total = s.new_zeros(rows)
        return s, total, total - math.inf, torch.ones_like(total, dtype=torch.bool)
    m = s.detach().amax(dims, keepdim=True)
    m = torch.where(m.isinf(), 0.0, m)
    shifted = s - m
    total = shifted.exp().sum(dims, keepdim=True)
    empty = total == 0
    lse = torch.where(empty, -math.inf, m + torch.where(empty, 1.0, total).log())
    return shifted, total, lse, empty


def _finish(x: Tensor, out: Tensor, lse: Tensor, dims, dtype, return_lse):
    acc = torch.float64 if torch.float64 in (x.dtype, dtype) else torch.float32
    out = out.reshape(x.shape).to(dtype or x.dtype)
    return (out, lse.squeeze(dims).to(acc)) if return_lse else out


def softmax_reference(
    x: Tensor,
    dim: int | tuple[int, ...] = -1,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    causal: bool | str = False,
    scale: float | Tensor | None = None,
    masked_rows: str = "nan",
    dtype: torch.dtype | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`fastops.softmax` in float64, rounded once to ``dtype`` (default: x's)."""
    s, valid, dims = _scores(x, dim, mask, bias, lengths, causal, scale)
    shifted, total, lse, empty = _row_parts(s, dims)
    if masked_rows == "zero":
        total = torch.where(empty, 1.0, total)
    # A row without a positive finite sum is NaN everywhere, the excluded elements included.
    broken = ~(total > 0) | total.isinf()
    p = shifted.exp() / torch.where(broken, math.nan, total)
    p = torch.where(valid, p, 0.0)
    p = torch.where(broken & ~valid, math.nan, p)
    return _finish(x, p, lse, dims, dtype, return_lse)


def log_softmax_reference(
    x: Tensor,
    dim: int | tuple[int, ...] = -1,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    causal: bool | str = False,
    scale: float | Tensor | None = None,
    masked_rows: str = "nan",
    dtype: torch.dtype | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`fastops.log_softmax` in float64, rounded once to ``dtype`` (default: x's)."""
    s, valid, dims = _scores(x, dim, mask, bias, lengths, causal, scale)
    shifted, total, lse, empty = _row_parts(s, dims)
    if masked_rows == "zero":
        # An empty row is constant: -inf, whether its elements are excluded or -inf themselves.
        valid = valid & ~empty
        total = torch.where(empty, 1.0, total)
    broken = ~(total > 0) | total.isinf()
    out = shifted - torch.where(broken, math.nan, total).log()
    out = torch.where(valid, out, -math.inf)
    out = torch.where(broken & ~valid, math.nan, out)
    return _finish(x, out, lse, dims, dtype, return_lse)


def logsumexp_reference(
    x: Tensor,
    dim: int | tuple[int, ...],
    keepdim: bool = False,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    causal: bool | str = False,
    scale: float | Tensor | None = None,
) -> Tensor:
    """:func:`fastops.logsumexp` in float64, rounded once to x's dtype."""
    s, _, dims = _scores(x, dim, mask, bias, lengths, causal, scale)
    lse = _row_parts(s, dims)[2]
    if x.ndim == 0 or not keepdim:
        lse = lse.squeeze(dims)
    return lse.to(x.dtype)
