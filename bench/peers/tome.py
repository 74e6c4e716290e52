"""Token merging as the public code does it, restated in plain PyTorch: the peer of the benchmarks
and the oracle of the compatibility tests.

ToMe: Bolya et al., "Token Merging: Your ViT But Faster" (facebookresearch/ToMe). tomesd: Bolya and
Hoffman, "Token Merging for Fast Stable Diffusion" (dbolya/tomesd). Same algorithm and same operator
calls: normalise, score matrix, row maximum, argsort, gathers, scatter_reduce.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Merge = Callable[..., Tensor]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b]] of [B, N, C] and [B, K, 1]."""
    return x.gather(1, index.expand(-1, -1, x.shape[-1]))


def _scores(metric: Tensor, a: Callable, b: Callable) -> Tensor:
    metric = metric / metric.norm(dim=-1, keepdim=True)
    return a(metric) @ b(metric).transpose(-1, -2)


def _identity(x: Tensor, mode: str | None = None) -> Tensor:
    return x


def tome(
    metric: Tensor, r: int, class_token: bool = False, distill_token: bool = False
) -> tuple[Merge, Merge]:
    """Alternating sources and destinations; returns merge(x, mode) and unmerge(x)."""
    tokens = metric.shape[1]
    r = min(r, (tokens - class_token - distill_token) // 2)
    if r <= 0:
        return _identity, _identity
    with torch.no_grad():
        scores = _scores(metric, lambda m: m[:, ::2], lambda m: m[:, 1::2])
        if class_token:
            scores[:, 0, :] = -torch.inf
        if distill_token:
            scores[:, :, 0] = -torch.inf
        best, match = scores.max(-1)
        edges = best.argsort(-1, descending=True)[..., None]
        kept, merged = edges[:, r:], edges[:, :r]
        target = match[..., None].gather(1, merged)
        if class_token:
            kept = kept.sort(dim=1).values

    def merge(x: Tensor, mode: str = "mean") -> Tensor:
        source, target_rows = x[:, ::2], x[:, 1::2]
        unmerged = _rows(source, kept)
        index = target.expand(-1, -1, x.shape[-1])
        target_rows = target_rows.scatter_reduce(1, index, _rows(source, merged), reduce=mode)
        if distill_token:
            parts = unmerged[:, :1], target_rows[:, :1], unmerged[:, 1:], target_rows[:, 1:]
            return torch.cat(parts, 1)
        return torch.cat([unmerged, target_rows], 1)

    def unmerge(x: Tensor) -> Tensor:
        unmerged, target_rows = x.split([kept.shape[1], x.shape[1] - kept.shape[1]], 1)
        out = x.new_zeros(x.shape[0], tokens, x.shape[-1])
        out[:, 1::2] = target_rows
        width = (-1, -1, x.shape[-1])
        out.scatter_(1, (2 * kept).expand(width), unmerged)
        out.scatter_(1, (2 * merged).expand(width), _rows(target_rows, target))
        return out

    return merge, unmerge


def kth(metric: Tensor, k: int) -> Merge:
    """Groups of k: all but the last of each merge. Tokens beyond the last whole group are lost."""
    if k <= 1:
        return _identity

    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        batch, n, c = x.shape
        groups = x[:, : n // k * k].reshape(batch, n // k, k, c)
        return groups[:, :, :-1].reshape(batch, -1, c), groups[:, :, -1]

    with torch.no_grad():
        scores = _scores(metric, lambda m: split(m)[0], lambda m: split(m)[1])
        match = scores.max(-1).indices[..., None]

    def merge(x: Tensor, mode: str = "mean") -> Tensor:
        source, target = split(x)
        return target.scatter_reduce(1, match.expand(source.shape), source, reduce=mode)

    return merge


def random(metric: Tensor, r: int) -> Merge:
    """A random permutation per sample: its first r tokens merge into the rest."""
    if r <= 0:
        return _identity
    with torch.no_grad():
        order = torch.rand(*metric.shape[:2], 1, device=metric.device).argsort(1)
        first, rest = order[:, :r], order[:, r:]
        scores = _scores(metric, lambda m: _rows(m, first), lambda m: _rows(m, rest))
        match = scores.max(-1).indices[..., None]

    def merge(x: Tensor, mode: str = "mean") -> Tensor:
        index = match.expand(-1, -1, x.shape[-1])
        return _rows(x, rest).scatter_reduce(1, index, _rows(x, first), reduce=mode)

    return merge


def weighted(merge: Merge, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean weighted by sizes, and their sums."""
    if size is None:
        size = torch.ones_like(x[..., :1])
    total = merge(size, mode="sum")
    return merge(x * size, mode="sum") / total, total


def tomesd(
    metric: Tensor, w: int, h: int, sx: int, sy: int, r: int, no_rand: bool = False, generator=None
) -> tuple[Merge, Merge]:
    """One random destination per sy x sx cell, shared by the batch; plain means, no sizes."""
    tokens = metric.shape[1]
    if r <= 0:
        return _identity, _identity
    with torch.no_grad():
        rows, columns = h // sy, w // sx
        if no_rand:
            pick = torch.zeros(rows, columns, 1, dtype=torch.int64)
        else:
            pick = torch.randint(
                sy * sx, (rows, columns, 1), device=generator.device, generator=generator
            )
        cells = torch.zeros(rows, columns, sy * sx, dtype=torch.int64)
        cells.scatter_(2, pick, -torch.ones_like(pick))
        marks = torch.zeros(h, w, dtype=torch.int64)
        cells = cells.view(rows, columns, sy, sx).transpose(1, 2)
        marks[: rows * sy, : columns * sx] = cells.reshape(rows * sy, columns * sx)
        # Stable, where the original leaves the order of equal marks to chance.
        order = marks.reshape(1, -1, 1).argsort(dim=1, stable=True).to(metric.device)
        targets, sources = order[:, : rows * columns], order[:, rows * columns :]
        batch = metric.shape[0]

        def split(x: Tensor) -> tuple[Tensor, Tensor]:
            at = (batch, -1, x.shape[-1])
            return x.gather(1, sources.expand(at)), x.gather(1, targets.expand(at))

        scores = _scores(metric, lambda m: split(m)[0], lambda m: split(m)[1])
        r = min(sources.shape[1], r)
        best, match = scores.max(-1)
        edges = best.argsort(-1, descending=True)[..., None]
        kept, merged = edges[:, r:], edges[:, :r]
        target = match[..., None].gather(1, merged)

    def merge(x: Tensor, mode: str = "mean") -> Tensor:
        source, rows_ = split(x)
        index = target.expand(-1, -1, x.shape[-1])
        rows_ = rows_.scatter_reduce(1, index, _rows(source, merged), reduce=mode)
        return torch.cat([_rows(source, kept), rows_], 1)

    def unmerge(x: Tensor) -> Tensor:
        unmerged, rows_ = x.split([kept.shape[1], x.shape[1] - kept.shape[1]], 1)
        out = x.new_zeros(batch, tokens, x.shape[-1])
        everyone = sources.expand(batch, -1, 1)
        width = (batch, -1, x.shape[-1])
        out.scatter_(1, targets.expand(width), rows_)
        out.scatter_(1, everyone.gather(1, kept).expand(width), unmerged)
        out.scatter_(1, everyone.gather(1, merged).expand(width), _rows(rows_, target))
        return out

    return merge, unmerge
