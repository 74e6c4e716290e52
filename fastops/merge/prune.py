"""prune_plan and prune_tokens: the tokens with the greatest scores; what becomes of the rest."""

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .. import _checks as check
from .. import _interop, _load
from .functional import check_padding, merge_tokens
from .ops import accumulation_dtype
from .plan import MergePlan
from .reference import ORDERS

__all__ = ["prune_plan", "prune_tokens"]

_match, _plan, _select = (_load.op(name) for name in ("token_match", "token_plan", "token_select"))


def prune_plan(
    scores: Any,
    keep: int | float,
    *,
    pool: int = 0,
    metric: Tensor | None = None,
    class_token: bool = False,
    distill_token: bool = False,
    padding_mask: Tensor | None = None,
) -> MergePlan:
    """The plan that keeps the tokens with the greatest scores, for :func:`merge_tokens`.

    Rows 0 to keep - 1 are the kept tokens by position, the last `pool` rows what the pruned are
    pooled into. Tokens of no row have -1 in ``map``.

    Args:
        scores: floating [B, N]. NaN counts as least, and the lower index first among equals.
        keep: How many tokens stay, or, a float in (0, 1], which share; class and distillation token
            are always among them.
        pool: Rows to pool the pruned into: with 1 all of them, with more each goes to the most
            similar of the `pool` best pruned tokens, by cosine of `metric` (as the recycling of
            Zhang et al., "SparseVLM", ICML 2025, section 3.3, with centres by score). 0: dropped.
        metric: floating [B, N, C], for ``pool > 1``; not looked at otherwise.
        padding_mask: bool [B, N], True where there is no token.

    Raises:
        TypeError, ValueError: As :func:`match_tokens`; keep + pool more than N.
    """
    name = "fastops.prune_tokens"
    scores = _interop._to_tensor(name, "scores", scores)
    check.is_tensor(name, "scores", scores)
    check.is_floating(name, "scores", scores)
    if scores.ndim != 2:
        raise ValueError(f"{name}: expected scores of shape [B, N], got {tuple(scores.shape)}")
    batch, n = scores.shape
    if isinstance(keep, bool) or not isinstance(keep, Integral | Real):
        raise TypeError(f"{name}: expected keep to be a number, got {type(keep).__name__}")
    if not isinstance(keep, Integral):
        keep = float(keep)
        if not 0 < keep <= 1:
            raise ValueError(f"{name}: expected keep in (0, 1] as a share, got {keep}")
        keep = max(1, int(n * keep)) if n else 0
    if isinstance(pool, bool) or not isinstance(pool, Integral):
        raise TypeError(f"{name}: expected pool to be an int, got {type(pool).__name__}")
    if pool < 0 or keep < 0 or keep + pool > n:
        raise ValueError(
            f"{name}: expected keep >= 0, pool >= 0 and keep + pool <= {n}, got {keep} and {pool}"
        )
    check.is_bool(name, "class_token", class_token)
    check.is_bool(name, "distill_token", distill_token)
    if keep < class_token + distill_token:
        raise ValueError(f"{name}: expected keep to cover class and distillation token, got {keep}")
    if padding_mask is not None:
        check_padding(name, padding_mask, scores, batch, n)
    if pool > 1:
        metric = _interop._to_tensor(name, "metric", metric)
        check.is_tensor(name, "metric", metric)
        check.is_floating(name, "metric", metric)
        check.same_device(name, "metric", metric, scores)
        if metric.ndim not in (3, 4) or (metric.shape[0], metric.shape[-2]) != (batch, n):
            raise ValueError(
                f"{name}: expected metric of shape {(batch, n, 'C')}, got {tuple(metric.shape)}"
            )
    _load.require(name, scores.device)
    with torch.no_grad():
        flags = (class_token, distill_token, padding_mask)
        ranked = scores.detach().to(accumulation_dtype(scores)).contiguous()
        tokens = _select(ranked, keep, pool, *flags)
        sources = n - keep - pool
        part = (tokens, sources, pool, 2, False, False, padding_mask)
        if pool > 1:
            found, matches = _match(metric.detach(), *part)
            found = found.to(ranked.dtype)
        else:  # to the one row there is, or to none
            matches = tokens.new_full((batch, sources), pool - 1)
            found = ranked.new_zeros((batch, sources))
        plan = _plan(found, matches, n, sources, keep + pool, *part, None, ORDERS.index("rest"))
    return MergePlan(*plan)


def prune_tokens(
    x: Any,
    scores: Any,
    keep: int | float,
    *,
    pool: int = 0,
    metric: Tensor | None = None,
    size: Any = None,
    class_token: bool = False,
    distill_token: bool = False,
    padding_mask: Tensor | None = None,
    return_plan: bool = False,
) -> Any:
    """The tokens with the greatest scores and, on request, the pruned pooled into a few rows.

    Args:
        x: A tensor or a tuple of them, as :func:`merge_tokens` takes.
        scores, keep, pool, metric, class_token, distill_token, padding_mask: As in
            :func:`prune_plan`; `metric` defaults to x (its first tensor).
        size: As in :func:`merge_tokens`; weights of the pooled means, and returned merged.
        return_plan: Also return the :class:`MergePlan`.

    Returns:
        [B, keep + pool, C] or what :func:`merge_tokens` makes of x; with `return_plan` a pair of it
        and the plan.

    Raises:
        TypeError, ValueError: As :func:`prune_plan` and :func:`merge_tokens`.

    Differentiable in x and size. The choice itself is not.
    """
    if pool > 1 and metric is None:
        metric = x[0] if isinstance(x, tuple | list) else x
    plan = prune_plan(
        scores,
        keep,
        pool=pool,
        metric=metric,
        class_token=class_token,
        distill_token=distill_token,
        padding_mask=padding_mask,
    )
    result = merge_tokens(x, plan, size=size)
    return (result, plan) if return_plan else result
