"""What ``tomesd.merge`` of tomesd (Bolya and Hoffman, 2023) offers, with its signatures and order.

``from fastops.compat.tomesd import bipartite_soft_matching_random2d`` in place of
``from tomesd.merge import ...``. Different from the original: destinations come in row-major order
(the original leaves it to an unstable sort), zero vectors do not give NaN, ties are decided.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..merge import match_tokens
from .tome import _callables, do_nothing

__all__ = ["bipartite_soft_matching_random2d", "do_nothing"]


def bipartite_soft_matching_random2d(
    metric: Tensor,
    w: int,
    h: int,
    sx: int,
    sy: int,
    r: int,
    no_rand: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Callable, Callable]:
    """Merge the r most similar tokens of an h x w image into one random token per sy x sx cell.

    Args:
        metric: [B, N, C] with N == h * w, row-major.
        w, h: Width and height of the image in tokens.
        sx, sy: Width and height of a cell; one destination is drawn in each, for all samples.
        r: How many tokens merge (not a ratio); at most all that are no destinations.
        no_rand: Destinations at the top left of their cells.
        generator: What draws them; None: a new one seeded by torch's.

    Returns:
        ``merge(x, mode="mean")`` (unweighted) and ``unmerge(x)``.
    """
    if r <= 0:
        return do_nothing, do_nothing
    if not no_rand and generator is None:
        generator = torch.Generator(metric.device)
        generator.manual_seed(int(torch.randint(2**62, ())))
    plan = match_tokens(
        metric,
        r=r,
        partition="grid",
        grid=(h, w),
        stride=(sy, sx),
        order="reference",
        generator=None if no_rand else generator,
    )
    return _callables(plan)
