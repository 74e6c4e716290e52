"""What ``tome.merge`` of ToMe (Bolya et al., ICLR 2023) offers, with its signatures and order.

``from fastops.compat.tome import bipartite_soft_matching, merge_wavg, merge_source`` in place of
``from tome.merge import ...``. The callables also carry ``.plan``, the :class:`fastops.MergePlan`.
Different from the original: zero vectors do not give NaN, ties are decided (lowest index),
:func:`bipartite_soft_matching`'s unmerge inverts the order with a distillation token too, and sizes
are float32 whatever the dtype of x.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..merge import MergePlan, match_tokens, merge_tokens, unmerge_tokens

__all__ = [
    "bipartite_soft_matching",
    "do_nothing",
    "kth_bipartite_soft_matching",
    "merge_source",
    "merge_wavg",
    "random_bipartite_soft_matching",
]

_MODES = {"mean": "mean", "sum": "sum", "amax": "max"}


def do_nothing(x: Tensor, mode: str | None = None) -> Tensor:
    """x."""
    return x


class _Merge:
    """``merge(x, mode="mean")`` of [B, N, C]: "mean" (unweighted), "sum" or "amax"."""

    def __init__(self, plan: MergePlan):
        self.plan = plan

    def __call__(self, x: Tensor, mode: str = "mean") -> Tensor:
        if mode not in _MODES:
            raise ValueError(
                f"fastops.compat.tome: expected mode to be one of {', '.join(_MODES)}, got {mode!r}"
            )
        return merge_tokens(x, self.plan, mode=_MODES[mode])


class _Unmerge:
    """``unmerge(x)`` of [B, M, C]."""

    def __init__(self, plan: MergePlan):
        self.plan = plan

    def __call__(self, x: Tensor) -> Tensor:
        return unmerge_tokens(x, self.plan)


def _callables(plan: MergePlan) -> tuple[Callable, Callable]:
    return _Merge(plan), _Unmerge(plan)


def bipartite_soft_matching(
    metric: Tensor, r: int, class_token: bool = False, distill_token: bool = False
) -> tuple[Callable, Callable]:
    """Merge the r most similar tokens of every second one into the others.

    Args:
        metric: [B, N, C].
        r: How many; at most half of the tokens that may merge. 0 or less: ``do_nothing`` twice.
        class_token, distill_token: Whether token 0, token 1 stay as they are.

    Returns:
        ``merge(x, mode="mean")`` and ``unmerge(x)``.
    """
    protected = int(class_token) + int(distill_token)
    if min(r, (metric.shape[1] - protected) // 2) <= 0:
        return do_nothing, do_nothing
    plan = match_tokens(
        metric,
        r=r,
        class_token=bool(class_token),
        distill_token=bool(distill_token),
        order="reference",
    )
    return _callables(plan)


def kth_bipartite_soft_matching(metric: Tensor, k: int) -> tuple[Callable, Callable]:
    """Merge each group's first k - 1 tokens into the group ends, by similarity.

    As in the original, tokens beyond the last whole group of k are dropped; unmerge gives 0 there.
    """
    if k <= 1:
        return do_nothing, do_nothing
    n = metric.shape[1]
    whole = n // k * k
    plan = match_tokens(metric[:, :whole], partition="kth", k=k, order="reference")
    if whole < n:
        map = torch.nn.functional.pad(plan.map, (0, n - whole), value=-1)
        plan = MergePlan.from_map(map, plan.num_out)
    return _callables(plan)


def random_bipartite_soft_matching(metric: Tensor, r: int) -> tuple[Callable, Callable]:
    """Merge r random tokens of each sample into the most similar of the rest."""
    if r <= 0:
        return do_nothing, do_nothing
    return _callables(match_tokens(metric, r=r, partition="random", order="reference"))


def merge_wavg(merge: Callable, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean weighted by sizes: ``(x, size)`` merged, size [B, N, 1] or None for one each."""
    if size is None:
        size = torch.ones(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    if merge is do_nothing:
        return x, size
    plan = getattr(merge, "plan", None)
    if plan is None:  # somebody's own callable: sums, as the original has it
        total = merge(size, mode="sum")
        return merge(x * size, mode="sum") / total, total
    y, total, _ = merge_tokens(x, plan, size=size)
    return y, total


def merge_source(merge: Callable, x: Tensor, source: Tensor | None = None) -> Tensor:
    """Which tokens each row stands for: [B, M, N0] of 0 and 1, updated from ``source`` or begun.

    N x N memory, as the original; :meth:`fastops.MergePlan.then` tracks the same in N integers.
    """
    if source is None:
        n, t, _ = x.shape
        source = torch.eye(t, dtype=x.dtype, device=x.device).expand(n, t, t)
    return merge(source, mode="amax")
