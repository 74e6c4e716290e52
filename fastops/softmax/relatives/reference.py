"""The relatives of softmax in plain PyTorch: what their kernels must compute.

As in :mod:`fastops.softmax.reference`: float64 throughout, rounded once, differentiable, not fast.
The thresholds of entmax are found by sorting (alpha 1.5 and 2) or bisection, then tied to the
support, through which autograd flows.
"""

import math

import torch
from torch import Tensor

from ..reference import participation, per_row

__all__ = [
    "entmax_loss_reference",
    "entmax_reference",
    "log_stablemax_reference",
    "pladis_softmax_reference",
    "softmax_topk_reference",
    "softpick_reference",
    "stablemax_reference",
]


class _Rows:
    """Scores with the reduced dims flattened last: (rows, n), -inf where excluded."""

    def __init__(self, x, dim, mask=None, lengths=None, causal=False, scale=None):
        rank = max(x.ndim, 1)
        self.dims = tuple(sorted(d % rank for d in ((dim,) if isinstance(dim, int) else dim)))
        self.shape, self.dtype = x.shape, x.dtype
        x = x.reshape(1) if x.ndim == 0 else x
        self.full = x.shape
        mask = None if mask is None else mask.reshape(1) if mask.ndim == 0 else mask
        valid = participation(x, self.dims, mask, lengths, causal)
        s = torch.where(valid, x.double(), 0.0)
        if isinstance(scale, Tensor):
            s = s * per_row(scale.double(), rank, self.dims)
        elif scale is not None:
            s = s * scale
        self.order = [d for d in range(rank) if d not in self.dims] + list(self.dims)
        self.s = self.rows(torch.where(valid, s, -math.inf))

    def rows(self, t: Tensor) -> Tensor:
        n = math.prod(self.full[d] for d in self.dims)
        return t.permute(self.order).reshape(-1, n) if t.numel() else t.new_zeros((0, n))

    def values(self, t: Tensor) -> Tensor:
        """One value per row, as (rows, 1)."""
        t = per_row(t, len(self.full), self.dims)
        rows = [1 if d in self.dims else size for d, size in enumerate(self.full)]
        return t.expand(rows).reshape(-1, 1)

    def back(self, y: Tensor, size: int | None = None) -> Tensor:
        shape = [self.full[d] for d in self.order]
        if size is not None:
            shape[-1] = size
        inverse = [self.order.index(d) for d in range(len(self.order))]
        y = y.reshape(shape).permute(inverse)
        return y.reshape(self.shape) if size is None else y

    def special(self, y: Tensor, masked_rows: str, nothing: float = 0.0) -> Tensor:
        """Rows without a score above -inf, and rows with a NaN or +inf."""
        empty = (self.s == -math.inf).all(-1, keepdim=True)
        broken = (self.s.isnan() | (self.s == math.inf)).any(-1, keepdim=True)
        y = torch.where(empty, nothing if masked_rows == "zero" else math.nan, y)
        return torch.where(broken, math.nan, y)

    def finite(self) -> Tensor:
        """Scores with harmless values in special rows, and the maximum."""
        bad = self.s.isnan() | (self.s == math.inf)
        s = torch.where(bad.any(-1, keepdim=True), 0.0, self.s)
        s = torch.where((s == -math.inf).all(-1, keepdim=True), 0.0, s)
        return s


def _power(u: Tensor, p: float | Tensor) -> Tensor:
    """u^p where u > 0, else 0, and so its gradient."""
    inside = u > 0
    return torch.where(inside, torch.where(inside, u, 1.0) ** p, 0.0)


def _entmax(s: Tensor, alpha: Tensor) -> Tensor:
    """entmax of finite rows (-inf allowed) for alpha of shape (rows, 1)."""
    if s.shape[-1] == 0 or s.shape[0] == 0:
        return s
    m = s.amax(-1, keepdim=True).detach()
    soft = torch.softmax(s, -1)
    e = torch.where(alpha == 1, 1.0, alpha - 1)
    excluded = s == -math.inf
    z = torch.where(excluded, 0.0, s - m) * e
    p = 1 / e
    with torch.no_grad():
        n = s.shape[-1]
        # Between the threshold at which the maximum alone has 1, and that at which all have 1/n.
        low, high = torch.full_like(m, -1.0), -(float(n) ** -e)
        low, high = torch.minimum(low, high), torch.maximum(low, high)
        for _ in range(200):
            tau = (low + high) / 2
            total = torch.where(excluded, 0.0, _power(z - tau, p)).sum(-1, keepdim=True)
            over = (total >= 1) == (e > 0)  # y falls with tau where e > 0
            low, high = torch.where(over, tau, low), torch.where(over, high, tau)
        tau = torch.where(e > 0, low, high)
        support = (z > tau) & ~excluded
    # tau is where the sum is 1: a Newton step for its value and first derivative, and one more for
    # the second derivative alone.
    for last in (False, True):
        y = torch.where(support, _power(z - tau, p), 0.0)
        slope = torch.where(support, _power(z - tau, p - 1), 0.0).sum(-1, keepdim=True)
        step = (y.sum(-1, keepdim=True) - 1) / (p * slope)
        tau = tau + (step - step.detach() if last else step)
    y = torch.where(support, _power(z - tau, p), 0.0)
    return torch.where(alpha == 1, soft, y / y.sum(-1, keepdim=True))


def _alphas(rows: _Rows, alpha) -> Tensor:
    if isinstance(alpha, Tensor):
        return rows.values(alpha.double())
    return torch.full((rows.s.shape[0], 1), float(alpha), dtype=torch.float64, device=rows.s.device)


def entmax_reference(
    x: Tensor, alpha: float | Tensor = 1.5, dim=-1, *, masked_rows: str = "nan", **score
) -> Tensor:
    """:func:`fastops.entmax` in float64, rounded once."""
    rows = _Rows(x, dim, **score)
    y = _entmax(rows.finite(), _alphas(rows, alpha))
    return rows.back(rows.special(y, masked_rows)).to(x.dtype)


def pladis_softmax_reference(
    x: Tensor, lam: float, alpha: float = 1.5, dim=-1, *, masked_rows: str = "nan", **score
) -> Tensor:
    """:func:`fastops.pladis_softmax` in float64, rounded once."""
    rows = _Rows(x, dim, **score)
    s = rows.finite()
    soft = torch.softmax(s, -1)
    y = soft + lam * (_entmax(s, _alphas(rows, alpha)) - soft)
    return rows.back(rows.special(y, masked_rows)).to(x.dtype)


def entmax_loss_reference(
    x: Tensor, target: Tensor, alpha: float | Tensor = 1.5, dim: int = -1, *,
    masked_rows: str = "nan", ignore_index: int = -100, **score,
) -> Tensor:  # fmt: skip
    """The Fenchel-Young loss of entmax per row, in float64: x's shape without ``dim``."""
    rows = _Rows(x, dim, **score)
    s, a = rows.finite(), _alphas(rows, alpha)
    p = _entmax(s, a)
    inside = p > 0
    safe = torch.where(a == 1, 2.0, a)
    entropy = (1 - _power(p, safe).sum(-1, keepdim=True)) / (safe * (safe - 1))
    shannon = -torch.where(inside, p * torch.where(inside, p, 1.0).log(), 0.0)
    entropy = torch.where(a == 1, shannon.sum(-1, keepdim=True), entropy)
    label = rows.values(target)
    ignored = label == ignore_index
    chosen = s.gather(-1, torch.where(ignored, 0, label))
    inner = torch.where(inside, p * torch.where(inside, s, 0.0), 0.0).sum(-1, keepdim=True)
    loss = rows.special(entropy + inner - chosen, masked_rows)
    loss = torch.where(ignored, 0.0, loss)
    return loss.reshape([size for d, size in enumerate(x.shape) if d not in rows.dims])


def softpick_reference(
    x: Tensor, dim=-1, eps: float = 1e-8, *, masked_rows: str = "zero", **score
) -> Tensor:
    """:func:`fastops.softpick` in float64, rounded once."""
    rows = _Rows(x, dim, **score)
    s = rows.finite()
    c = s.detach().amax(-1, keepdim=True).clamp_min(0) if s.shape[-1] else s
    excluded = s == -math.inf
    u = torch.expm1(torch.where(excluded, 0.0, s)) * (-c).exp()
    u = torch.where(u.isfinite() & (s < 30), u, (torch.where(excluded, 0.0, s) - c).exp())
    total = u.abs().sum(-1, keepdim=True) + eps
    return rows.back(rows.special(torch.relu(u) / total, masked_rows)).to(x.dtype)


def _stable(s: Tensor) -> Tensor:
    """log of what stablemax sums: log1p(|s|) with the sign of s; -inf for -inf."""
    excluded = s == -math.inf
    s = torch.where(excluded, 0.0, s)
    t = torch.where(s < 0, -torch.log1p(-s.clamp_max(0)), torch.log1p(s.clamp_min(0)))
    return torch.where(excluded, -math.inf, t)


def log_stablemax_reference(x: Tensor, dim=-1, *, masked_rows: str = "nan", **score) -> Tensor:
    """:func:`fastops.log_stablemax` in float64, rounded once."""
    rows = _Rows(x, dim, **score)
    y = torch.log_softmax(_stable(rows.finite()), -1)
    return rows.back(rows.special(y, masked_rows, -math.inf)).to(x.dtype)


def stablemax_reference(x: Tensor, dim=-1, *, masked_rows: str = "nan", **score) -> Tensor:
    """:func:`fastops.stablemax` in float64, rounded once."""
    rows = _Rows(x, dim, **score)
    y = torch.softmax(_stable(rows.finite()), -1)
    return rows.back(rows.special(y, masked_rows)).to(x.dtype)


def softmax_topk_reference(
    x: Tensor, k: int, dim: int = -1, *, renormalize: bool = False, masked_rows: str = "nan",
    **score,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """:func:`fastops.softmax_topk` in float64, the values rounded once."""
    rows = _Rows(x, dim, **score)
    s = rows.finite()
    indices = torch.sort(s, dim=-1, descending=True, stable=True)[1][:, :k]
    chosen = s.gather(-1, indices)
    values = torch.softmax(chosen, -1) if renormalize else torch.softmax(s, -1).gather(-1, indices)
    values = rows.special(values, masked_rows)
    special = (rows.s == -math.inf).all(-1) | rows.s.isnan().any(-1) | (rows.s == math.inf).any(-1)
    first = torch.arange(k, device=x.device)
    indices = torch.where(special[:, None], first, indices)
    if x.ndim == 0:
        return values.reshape(()).to(x.dtype), indices.reshape(())
    return rows.back(values, k).to(x.dtype), rows.back(indices, k)
