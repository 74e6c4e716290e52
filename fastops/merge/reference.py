"""What the merge ops mean, in plain PyTorch, of any floating dtype: the contract of the kernels.

Written to be read: a sample at a time where that is clearer. Every index is int64 here.
"""

import torch
from torch import Tensor

MODES = ("mean", "sum", "max", "mlerp")
ORDERS = ("position", "reference", "rest")


def partition_reference(
    n: int, *, tokens: Tensor | None = None, num_src: int = 0, num_dst: int = 0, k: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of sources, destinations and the rest, each [1 or B, ...].

    Without `tokens` every k-th token (k - 1, 2k - 1, ...) is a destination, all others are sources.
    """
    if tokens is None:
        position = torch.arange(n)
        is_dst = position % k == k - 1
        return position[~is_dst][None], position[is_dst][None], position[:0][None]
    tokens = tokens.long()
    return (
        tokens[:, :num_src],
        tokens[:, num_src : num_src + num_dst],
        tokens[:, num_src + num_dst :],
    )


def takes_part_reference(
    batch: int,
    n: int,
    class_token: bool = False,
    distill_token: bool = False,
    padding_mask: Tensor | None = None,
) -> Tensor:
    """bool [B, N]: tokens that may merge or receive. Class and distillation token do neither."""
    allowed = torch.ones(batch, n, dtype=torch.bool)
    allowed[:, :1] &= not class_token
    allowed[:, 1:2] &= not distill_token
    return allowed if padding_mask is None else allowed & ~padding_mask


def normalize_reference(metric: Tensor) -> Tensor:
    """Rows of length 1; zeros stay zeros; a row with an element that is not finite is NaN."""
    largest = metric.abs().amax(-1, keepdim=True)
    scaled = metric / torch.where(largest == 0, 1, largest)  # so that squares stay in range
    length = scaled.norm(dim=-1, keepdim=True)
    unit = scaled / torch.where(length == 0, 1, length)
    return torch.where(largest.isfinite(), unit, torch.nan)


def match_reference(
    metric: Tensor,
    *,
    tokens: Tensor | None = None,
    num_src: int = 0,
    num_dst: int = 0,
    k: int = 2,
    class_token: bool = False,
    distill_token: bool = False,
    padding_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(scores, matches), [B, sources]: the greatest cosine with a destination, and its index.

    The least index among equals. Scores that are no numbers lose; where none is one, -inf and the
    first destination that may receive. Sources that may not merge, and all of them where nothing
    may receive: -inf and -1.
    """
    if metric.ndim == 4:
        metric = metric.mean(1)
    batch, n, _ = metric.shape
    src, dst, _ = partition_reference(n, tokens=tokens, num_src=num_src, num_dst=num_dst, k=k)
    src, dst = src.expand(batch, -1), dst.expand(batch, -1)
    allowed = takes_part_reference(batch, n, class_token, distill_token, padding_mask)
    unit = normalize_reference(metric)
    lowest = -torch.inf
    if dst.shape[1] == 0:
        scores = unit.new_full(src.shape, lowest)
        return scores, torch.full_like(src, -1)
    a = unit.gather(1, src[..., None].expand(-1, -1, unit.shape[-1]))
    b = unit.gather(1, dst[..., None].expand(-1, -1, unit.shape[-1]))
    receives = allowed.gather(1, dst)
    similarity = (a @ b.mT).nan_to_num(nan=lowest, neginf=lowest, posinf=torch.inf)
    similarity = torch.where(receives[:, None], similarity, lowest)
    scores = similarity.amax(-1)
    matches = (similarity == scores[..., None]).int().argmax(-1)
    first = receives.int().argmax(-1, keepdim=True)
    matches = torch.where(scores == lowest, first, matches)
    merges = allowed.gather(1, src) & receives.any(-1, keepdim=True)
    return torch.where(merges, scores, lowest), torch.where(merges, matches, -1)


def plan_reference(
    scores: Tensor,
    matches: Tensor,
    n: int,
    r: int,
    *,
    tokens: Tensor | None = None,
    num_src: int = 0,
    num_dst: int = 0,
    k: int = 2,
    class_token: bool = False,
    distill_token: bool = False,
    padding_mask: Tensor | None = None,
    threshold: float | None = None,
    order: str = "position",
) -> tuple[Tensor, list[int]]:
    """(map [B, N], lengths): the output row of each token, -1 for none, and how many rows are used.

    The r sources with the greatest scores merge, the lower index first among equal ones; with
    `threshold` only those above it.
    """
    batch = scores.shape[0]
    src, dst, rest = (
        part.expand(batch, -1).tolist()
        for part in partition_reference(n, tokens=tokens, num_src=num_src, num_dst=num_dst, k=k)
    )
    exists = takes_part_reference(batch, n, padding_mask=padding_mask).tolist()
    allowed = takes_part_reference(batch, n, class_token, distill_token, padding_mask).tolist()
    key = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).tolist()
    maps, lengths = [], []
    for b in range(batch):
        falling = sorted(range(len(src[b])), key=lambda i, b=b: (-key[b][i], i))
        leaving = [
            i
            for i in falling
            if allowed[b][src[b][i]]
            and matches[b, i] >= 0
            and exists[b][dst[b][matches[b, i]]]
            and (threshold is None or scores[b, i] > threshold)
        ][: max(r, 0)]
        if order == "rest":
            leaving = [i for i in range(len(src[b])) if exists[b][src[b][i]]]
        gone = {src[b][i] for i in leaving}
        staying = [i for i in range(len(src[b])) if src[b][i] not in gone]
        if order == "position":
            rows = [t for t in range(n) if t not in gone]
        elif order == "rest":
            rows = rest[b] + dst[b]
        else:
            if not class_token:
                staying.sort(key=lambda i, b=b: (-key[b][i], i))
            left = [src[b][i] for i in staying]
            if distill_token:
                rows = rest[b] + left[:1] + dst[b][:1] + left[1:] + dst[b][1:]
            else:
                rows = rest[b] + left + dst[b]
        rows = [t for t in rows if exists[b][t]]
        row_of = {t: o for o, t in enumerate(rows)}
        for i in leaving:
            match = int(matches[b, i])
            row_of[src[b][i]] = row_of.get(dst[b][match], -1) if match >= 0 else -1
        maps.append([row_of.get(t, -1) for t in range(n)])
        lengths.append(len(rows))
    return torch.tensor(maps, dtype=torch.int64).reshape(batch, n), lengths


def csr_reference(map: Tensor, num_out: int) -> tuple[Tensor, Tensor]:
    """(offsets [B, M + 1], perm [B, N]): the tokens of each row, ascending; -1 past the last."""
    offsets, perms = [], []
    for row in map.tolist():
        members = [[i for i, o in enumerate(row) if o == out] for out in range(num_out)]
        flat = [i for m in members for i in m]
        perms.append(flat + [-1] * (len(row) - len(flat)))
        offsets.append([sum(len(m) for m in members[:out]) for out in range(num_out + 1)])
    return torch.tensor(offsets).reshape(len(map), num_out + 1), torch.tensor(perms).reshape(
        map.shape
    )


def source_reference(map: Tensor, num_out: int, dtype: torch.dtype) -> Tensor:
    """[B, M, N]: 1 where token n is in row m."""
    return (map[:, None] == torch.arange(num_out, device=map.device)[:, None]).to(dtype)


def merge_reference(
    x: Tensor, map: Tensor, num_out: int, size: Tensor | None = None, mode: str = "mean"
) -> tuple[Tensor, Tensor]:
    """(y [B, ..., M, C], merged sizes [B, M]). Differentiable in x and size.

    sum: of the tokens of a row. mean: weighted by size; 0 where the sizes sum to 0. max: per
    channel. mlerp: the mean, scaled to the greatest norm among the tokens (Kim et al., "Token
    Fusion", WACV 2024, section 3.2). A row of one token is that token, a row of none is 0.
    """
    member = source_reference(map, num_out, torch.bool)
    count = member.sum(-1)
    weight = x.new_ones(map.shape) if size is None else size.to(x.dtype)
    merged = (member * weight[:, None]).sum(-1)
    middle = (slice(None),) + (None,) * (x.ndim - 3)
    weights = member.to(x.dtype)
    if mode in ("mean", "mlerp"):
        weights = member * weight[:, None] / torch.where(merged == 0, 1, merged)[..., None]
    weights = torch.where((count == 1)[..., None], member.to(x.dtype), weights)
    if mode == "max":
        parts = torch.where(member[middle][..., None], x[..., None, :, :], -torch.inf)
        y = torch.where((count > 0)[middle][..., None], parts.amax(-2), 0)
        return y, merged
    y = weights[middle] @ x
    if mode == "mlerp":
        norms = torch.where(member[middle], _norm(x)[..., None, :], 0)
        length = _norm(y)[..., None]
        scaled = y * (norms.amax(-1, keepdim=True) / torch.where(length == 0, 1, length))
        y = torch.where((count > 1)[middle][..., None], scaled, y)
    return y, merged


def _norm(x: Tensor) -> Tensor:
    """Over the last dim; with derivatives of 0 at 0, to any order."""
    squares = x.square().sum(-1)
    return torch.where(squares == 0, 0, torch.where(squares == 0, 1, squares).sqrt())


def unmerge_reference(y: Tensor, map: Tensor, residual: Tensor | None = None) -> Tensor:
    """out[..., n, :] = y[..., map[n], :], 0 where that is no row, plus the residual."""
    middle = (slice(None),) + (None,) * (y.ndim - 3)
    known = (map >= 0) & (map < y.shape[-2])
    index = torch.where(known, map, 0).long()[middle][..., None]
    index = index.expand(*y.shape[:-2], map.shape[1], y.shape[-1])
    padded = y if y.shape[-2] else y.new_zeros(*y.shape[:-2], 1, y.shape[-1])
    out = torch.where(known[middle][..., None], padded.gather(-2, index), 0)
    return out if residual is None else out + residual


def select_reference(
    scores: Tensor,
    keep: int,
    pool: int,
    class_token: bool = False,
    distill_token: bool = False,
    padding_mask: Tensor | None = None,
) -> Tensor:
    """int64 [B, N]: the rest by position, the next `pool` by falling score, the `keep` greatest by
    position. Class and distillation tokens count as greatest, padding as least, NaN before it."""
    batch, n = scores.shape
    exists = takes_part_reference(batch, n, padding_mask=padding_mask).tolist()
    allowed = takes_part_reference(batch, n, class_token, distill_token, padding_mask).tolist()
    rows = []
    for b, values in enumerate(scores.tolist()):

        def rank(t, b=b, values=values):
            score = values[t] if exists[b][t] else 0
            score = -torch.inf if score != score else score
            return (not exists[b][t], exists[b][t] and allowed[b][t], -score, t)

        order = sorted(range(n), key=rank)
        rest = sorted(order[keep + pool :])
        rows.append(rest + order[keep : keep + pool] + sorted(order[:keep]))
    return torch.tensor(rows, dtype=torch.int64).reshape(batch, n)
