"""Matching problems and how their results are judged: by score, because near-equal similarities
may be decided either way within rounding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastops import MergePlan
from fastops.merge import reference as ref

OPS = torch.ops.fastops
# Error of a cosine, per element type: that of rounding the input does not count, it is shared.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.float16: 2e-6,
    torch.bfloat16: 2e-6,
}


@dataclass
class Problem:
    """A metric and how its tokens divide."""

    metric: Tensor
    partition: dict[str, Any] = field(default_factory=dict)  # arguments of the ops

    @property
    def exact(self) -> tuple[Tensor, Tensor]:
        """Reference scores and matches in float64."""
        return ref.match_reference(self.metric.double(), **self.partition)

    def similarity(self) -> Tensor:
        """[B, sources, destinations] in float64; -inf where a pair may not merge."""
        metric = self.metric.double()
        metric = metric.mean(1) if metric.ndim == 4 else metric
        given = dict(self.partition)
        flags = {
            key: given.pop(key)
            for key in ("class_token", "distill_token", "padding_mask")
            if key in given
        }
        batch, n, _ = metric.shape
        src, dst, _ = (p.expand(batch, -1) for p in ref.partition_reference(n, **given))
        allowed = ref.takes_part_reference(batch, n, **flags)
        unit = ref.normalize_reference(metric)

        def rows(index):
            return unit.gather(1, index[..., None].expand(-1, -1, unit.shape[-1]))

        pairs = rows(src) @ rows(dst).mT
        may = allowed.gather(1, src)[..., None] & allowed.gather(1, dst)[:, None]
        return torch.where(may, pairs, -torch.inf)

    def check_match(self) -> tuple[Tensor, Tensor]:
        scores, matches = OPS.token_match(self.metric, **self.partition)
        exact, expected = self.exact
        tolerance = TOLERANCE[self.metric.dtype]
        assert torch.equal(scores == -torch.inf, exact == -torch.inf)
        assert torch.equal(matches < 0, expected < 0)
        known = exact > -torch.inf
        if known.any():
            assert (scores.double() - exact)[known].abs().max() <= tolerance
            pairs = self.similarity()
            chosen = pairs.gather(-1, matches.clamp_min(0).long()[..., None])[..., 0]
            assert (exact - chosen)[known].max() <= 2 * tolerance, "not the best destination"
        # Where nothing compares, the first destination that may receive.
        assert torch.equal(matches[~known].long(), expected[~known])
        return scores, matches


def check_plan(plan: MergePlan, full: bool = True) -> None:
    """A plan's parts agree with each other; `full`: the rows in use are the first `lengths`."""
    offsets, perm = ref.csr_reference(plan.map.cpu(), plan.num_out)
    assert torch.equal(plan.offsets.cpu().long(), offsets)
    assert torch.equal(plan.perm.cpu().long(), perm)
    if not full:
        return
    used = torch.arange(plan.num_out) < plan.lengths.cpu()[:, None]
    assert torch.equal(offsets.diff(dim=1) > 0, used)


def plan_of_scores(scores, matches, n, r, rows, partition, **rest) -> MergePlan:
    order = ref.ORDERS.index(rest.pop("order", "position"))
    return MergePlan(*OPS.token_plan(scores, matches, n, r, rows, **partition, **rest, order=order))


def random_plan(batch: int, n: int, rows: int, *, seed: int = 0, holes: bool = True) -> MergePlan:
    """Any map at all, with rows of any size and tokens that go nowhere."""
    generator = torch.Generator().manual_seed(seed)
    low = -1 if holes else 0
    map = torch.randint(low, max(rows, low + 1), (batch, n), generator=generator)
    return MergePlan.from_map(map, rows)
