"""Gradients of the softmax family as formulas in torch operations, differentiable to any order.

With ds the gradient of the scores s = x * scale * row_scale + bias,

    softmax      ds = p * (dy - sum(p * dy) + dlse)           p = y
    log_softmax  ds = dy - p * (sum(dy) - dlse)               p = exp(y)
    logsumexp    ds = dlse * p                                p = exp(s - lse)

and 0 where an element does not take part; dx = ds * scale * row_scale. The backward kernels compute
the same; these run where the backward pass is itself differentiated.
"""

import math

import torch
from torch import Tensor

from .reference import participation, per_row

CAUSAL = {0: False, 1: "upper_left", 2: "lower_right"}
"""The ops' causal argument, as the public functions spell it."""


def accumulation_dtype(*dtypes: torch.dtype | None) -> torch.dtype:
    """float64 where any of the dtypes is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def dims_of(x: Tensor, dim) -> tuple[int, ...]:
    return tuple(sorted(d % max(x.ndim, 1) for d in dim))


def sum_over(t: Tensor, dims: tuple[int, ...], keepdim: bool = True) -> Tensor:
    return t.sum(dims, keepdim=keepdim) if t.ndim else t


def score_gradient(kind, grad, y, dims, valid, grad_lse, zero_masked_rows) -> Tensor:
    """ds of softmax and log_softmax. `y` and `grad` are in the accumulation dtype."""
    grad = torch.where(valid, grad, 0.0)
    p = torch.where(valid, y if kind == "softmax" else y.exp(), 0.0)
    inner = sum_over(p * grad if kind == "softmax" else grad, dims)
    if grad_lse is not None:
        inner = inner - per_row(grad_lse, y.ndim, dims)
    if kind == "softmax":
        ds = p * (grad - inner)
    else:
        ds = grad - p * inner
        if zero_masked_rows:
            valid = valid & ~all_masked(y, dims)
    return torch.where(valid, ds, 0.0)


def all_masked(y: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Rows of a log_softmax where no score is above -inf."""
    masked = y == -math.inf
    return masked.all(dims, keepdim=True) if y.ndim else masked


def to_x(ds: Tensor, scale: float, row_scale: Tensor | None, dims, dtype) -> Tensor:
    if scale != 1.0:
        ds = ds * scale
    if row_scale is not None:
        ds = ds * per_row(row_scale, ds.ndim, dims)
    return ds.to(dtype)


def normalize_backward(
    kind, grad, y, dim, *, mask, lengths, causal, scale, row_scale, grad_lse, zero_masked_rows,
    dtype,
):  # fmt: skip
    dims, result = dims_of(y, dim), dtype or y.dtype
    acc = accumulation_dtype(y.dtype, result)
    valid = participation(y, dims, mask, lengths, CAUSAL[causal])
    ds = score_gradient(kind, grad.to(acc), y.to(acc), dims, valid, grad_lse, zero_masked_rows)
    return to_x(ds, scale, row_scale, dims, result)


def logsumexp_score_gradient(
    grad, x, lse, dims, *, mask, bias, lengths, causal, scale, row_scale
) -> Tensor:
    """ds of logsumexp, in lse's dtype."""
    valid = participation(x, dims, mask, lengths, CAUSAL[causal])
    s = to_x(torch.where(valid, x.to(lse.dtype), 0.0), scale, row_scale, dims, lse.dtype)
    if bias is not None:
        s = s + torch.where(valid, bias.to(lse.dtype), 0.0)
    s = torch.where(valid, s - per_row(lse, x.ndim, dims), -math.inf)
    return s.exp() * per_row(grad, x.ndim, dims)


def logsumexp_backward(grad, x, lse, dim, *, scale, row_scale, dtype, **score):
    dims = dims_of(x, dim)
    ds = logsumexp_score_gradient(grad, x, lse, dims, scale=scale, row_scale=row_scale, **score)
    return to_x(ds, scale, row_scale, dims, dtype or x.dtype)
