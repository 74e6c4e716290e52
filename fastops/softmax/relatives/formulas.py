"""Gradients of the relatives of softmax as formulas in torch operations, differentiable to any
order; the backward kernels compute the same. With <.> the sum over a row,

    entmax         ds = g (dy - <g dy> / <g>)                g = y^(2 - alpha) on the support
    pladis         ds = (1 - lam) p (dy - <p dy>) + lam g (dy - <g dy> / <g>)
    softpick       ds = e^(s - c) / D (1[s > 0] dy - sign(s) <y dy>)
    stablemax      ds = y (dy - <y dy>) / (1 + |s|)
    log_stablemax  ds = (dy - y <dy>) / (1 + |s|)
    softmax_topk   softmax's, of a dy that is 0 where nothing was chosen

They are computed in the accumulation dtype, and are 0 where an element does not take part.
"""

import math

import torch
from torch import Tensor

from ..formulas import CAUSAL, accumulation_dtype, dims_of, sum_over, to_x
from ..reference import participation, per_row


def _scores(x: Tensor, dims, score) -> tuple[Tensor, Tensor]:
    """(s, -inf where excluded; which take part with a finite score)."""
    acc = accumulation_dtype(x.dtype)
    scale = (score["scale"], score["row_scale"], dims, acc)
    valid = participation(x, dims, score["mask"], score["lengths"], CAUSAL[score["causal"]])
    x = torch.where(valid, x.to(acc), 0.0)
    # An infinite x would have the derivative of row_scale be 0 * inf.
    valid = valid & (to_x(x, *scale) != -math.inf)
    return torch.where(valid, to_x(torch.where(valid, x, 0.0), *scale), -math.inf), valid


def entmax_ds(grad: Tensor, y: Tensor, alpha, dims, valid: Tensor) -> Tensor:
    """From the output. Safe off the support, where powers of y have no derivative."""
    inside = valid & (y != 0)
    y = torch.where(inside, y, 1.0)
    g = torch.where(inside, y ** (2 - alpha), 0.0)
    grad = torch.where(inside, grad, 0.0)
    total = sum_over(g, dims)
    mean = sum_over(g * grad, dims) / torch.where(total == 0, 1.0, total)
    return g * (grad - mean)


def entmax_backward(grad, y, dim, *, alpha, row_alpha, dtype, **score) -> Tensor:
    dims, result = dims_of(y, dim), dtype or y.dtype
    acc = accumulation_dtype(y.dtype, result)
    valid = participation(y, dims, score["mask"], score["lengths"], CAUSAL[score["causal"]])
    power = alpha if row_alpha is None else per_row(row_alpha, y.ndim, dims)
    ds = entmax_ds(grad.to(acc), y.to(acc), power, dims, valid)
    return to_x(ds, score["scale"], score["row_scale"], dims, result)


def entmax_alpha_backward(grad, y, dim, *, alpha, row_alpha, **score) -> Tensor:
    """The gradient of alpha, per row: entmax's derivative with its division by (alpha - 1)^2
    carried out, so that alpha = 1 is no exception."""
    dims = dims_of(y, dim)
    acc = accumulation_dtype(y.dtype)
    valid = participation(y, dims, score["mask"], score["lengths"], CAUSAL[score["causal"]])
    e = (alpha if row_alpha is None else per_row(row_alpha, y.ndim, dims)) - 1
    inside = valid & (y != 0)
    p = torch.where(inside, y.to(acc), 0.0)
    log = torch.where(inside, y.to(acc), 1.0).log()
    t = -e * log
    near = t.abs() < 0.5
    safe, small = torch.where(near, 1.0, t), torch.where(near, t, 0.0)
    series = sum((small**i / math.factorial(i + 2) for i in range(14)), torch.zeros_like(p))
    q = log**2 * torch.where(near, series, (safe.exp() - 1 - safe) / safe**2)
    h, q_mean = sum_over(p * log, dims), sum_over(p * q, dims)
    grad = torch.where(inside, grad.to(acc), 0.0)
    terms = grad * p * (q_mean * (1 - e * log) - q * (1 - e * h))
    total = sum_over(terms, dims) / (1 - e * h + e * e * q_mean)
    return total.squeeze(dims) if y.ndim else total


def _entmax_of(s: Tensor, alpha: float, dims) -> Tensor:
    """entmax of scores in torch operations, differentiable: a layer of the op itself."""
    from . import autograd

    return autograd.entmax_of_scores(s, alpha, dims)


def pladis_softmax_backward(grad, x, dim, *, lam, alpha, dtype, **score) -> Tensor:
    dims = dims_of(x, dim)
    s, valid = _scores(x, dims, score)
    grad = torch.where(valid, grad.to(s.dtype), 0.0)
    p = torch.where(valid, (s - _lse(s, dims)).exp(), 0.0)
    dense = p * (grad - sum_over(p * grad, dims))
    y = _entmax_of(s, alpha, dims)
    ds = (1 - lam) * dense + lam * entmax_ds(grad, y, alpha, dims, valid)
    return to_x(ds, score["scale"], score["row_scale"], dims, dtype or x.dtype)


def _lse(s: Tensor, dims) -> Tensor:
    return torch.logsumexp(s, dims, keepdim=True) if s.ndim else s


def softpick_backward(grad, x, dim, *, eps, dtype, **score) -> Tensor:
    dims = dims_of(x, dim)
    s, valid = _scores(x, dims, score)
    grad, safe = torch.where(valid, grad.to(s.dtype), 0.0), torch.where(valid, s, 0.0)
    c = s.detach().amax(dims, keepdim=True) if s.ndim and s.numel() else s.detach()
    c = c.clamp_min(0)  # cancels but for eps
    away = (safe - c).exp()
    near = safe.abs() < 1
    u = torch.where(near, torch.expm1(torch.where(near, safe, 0.0)) * (-c).exp(), away - (-c).exp())
    u = torch.where(valid, u, 0.0)
    factor = 1 / (sum_over(u.abs(), dims) + eps)
    inner = sum_over(torch.where(s > 0, u * factor * grad, 0.0), dims)
    ds = away * factor * (torch.where(s > 0, grad, 0.0) - safe.sign() * inner)
    return to_x(
        torch.where(valid, ds, 0.0), score["scale"], score["row_scale"], dims, dtype or x.dtype
    )


def stablemax_backward(grad, x, dim, *, log, dtype, **score) -> Tensor:
    dims = dims_of(x, dim)
    s, valid = _scores(x, dims, score)
    grad, safe = torch.where(valid, grad.to(s.dtype), 0.0), torch.where(valid, s, 0.0)
    t = torch.where(safe < 0, 1 / (1 - safe.clamp_max(0)), 1 + safe.clamp_min(0))
    t = torch.where(valid, t, 0.0)
    y = t / sum_over(t, dims)
    ds = grad - y * sum_over(grad, dims) if log else y * (grad - sum_over(y * grad, dims))
    ds = torch.where(valid, ds / (1 + safe.abs()), 0.0)
    return to_x(ds, score["scale"], score["row_scale"], dims, dtype or x.dtype)


def entmax_loss_backward(
    grad, x, target, dim, *, alpha, row_alpha, ignore_index, dtype, **score
) -> Tensor:
    from . import autograd

    dims = dims_of(x, dim)
    s, valid = _scores(x, dims, score)
    y = autograd.entmax_of_scores(s, alpha if row_alpha is None else row_alpha, dims)
    label = per_row(target, x.ndim, dims)
    ignored = label == ignore_index
    hot = torch.zeros_like(s).scatter(dims[0], torch.where(ignored, 0, label), 1.0)
    ds = (y - hot) * per_row(grad, x.ndim, dims)
    ds = torch.where(valid & ~ignored, ds, 0.0)
    return to_x(ds, score["scale"], score["row_scale"], dims, dtype or x.dtype)


def softmax_topk_backward(grad, indices, x, dim, *, renormalize, dtype, **score) -> Tensor:
    dims = dims_of(x, (dim,))
    s, valid = _scores(x, dims, score)
    axis = dims[0]
    if x.ndim == 0:
        return torch.zeros_like(x, dtype=dtype or x.dtype) * s.exp()
    chosen = torch.zeros_like(s, dtype=torch.bool).scatter(axis, indices, True)
    dy = torch.zeros_like(s).scatter(axis, indices, grad.to(s.dtype))
    live = valid & chosen if renormalize else valid
    kept = torch.where(live, s, -math.inf)
    p = torch.where(live, (kept - _lse(kept, dims)).exp(), 0.0)
    ds = torch.where(live, p * (dy - sum_over(p * dy, dims)), 0.0)
    return to_x(ds, score["scale"], score["row_scale"], dims, dtype or x.dtype)
