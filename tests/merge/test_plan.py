"""token_plan, token_select and composition against the reference, and match_tokens itself."""

from __future__ import annotations

import pytest
import torch

import fastops
from fastops import MergePlan
from fastops.merge import reference as ref
from tests.merge.problems import OPS, check_plan, plan_of_scores, random_plan
from tests.merge.test_match import randn, shuffled

pytestmark = pytest.mark.isa
ORDERS = ["position", "reference"]


def same_plan(plan, scores, matches, n, r, partition, **rest):
    expected, lengths = ref.plan_reference(scores, matches, n, r, **partition, **rest)
    assert torch.equal(plan.map.long(), expected)
    assert plan.lengths.tolist() == lengths
    check_plan(plan)


def random_scores(batch, sources, destinations, *, levels=None, seed=0):
    """Scores with many ties where `levels` is small, a few of them not numbers."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, sources, generator=generator)
    if levels:
        scores = (scores * levels).floor() / levels
    scores[torch.rand(scores.shape, generator=generator) < 0.05] = torch.nan
    scores[torch.rand(scores.shape, generator=generator) < 0.05] = -torch.inf
    matches = torch.randint(-1, max(destinations, 1), scores.shape, generator=generator)
    if destinations == 0:
        matches.fill_(-1)
    return scores, matches.int()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("levels", [None, 3, 1])
@pytest.mark.parametrize("flags", [(False, False), (True, False), (True, True), (False, True)])
@pytest.mark.parametrize("k", [2, 5])
def test_token_plan(order, levels, flags, k):
    for n in (1, 2, 3, 8, 29, 64):
        partition = {"k": k, "class_token": flags[0], "distill_token": flags[1]}
        scores, matches = random_scores(3, n - n // k, n // k, levels=levels)
        for r in (0, 1, n // 3, n):
            for threshold in (None, 0.4):
                rest = {"order": order, "threshold": threshold}
                plan = plan_of_scores(scores, matches, n, r, n, partition, **rest)
                same_plan(plan, scores, matches, n, r, partition, **rest)


@pytest.mark.parametrize("order", [*ORDERS, "rest"])
def test_token_plan_with_lists_and_padding(order):
    n = 31
    mask = torch.rand(3, n, generator=torch.Generator().manual_seed(0)) < 0.3
    partition = {**shuffled(3, n, 17, 9), "padding_mask": mask}
    scores, matches = random_scores(3, 17, 9, levels=4)
    for r in (0, 4, 17):
        plan = plan_of_scores(scores, matches, n, r, n, partition, order=order)
        same_plan(plan, scores, matches, n, r, partition, order=order)


def test_double_scores():
    scores, matches = random_scores(2, 20, 20)
    scores = 1 + scores.double() * 1e-12  # equal in float32
    plan = plan_of_scores(scores, matches, 40, 7, 40, {})
    same_plan(plan, scores, matches, 40, 7, {})


def test_too_few_rows_stay_in_bounds():
    scores, matches = random_scores(2, 20, 20)
    plan = plan_of_scores(scores, matches, 40, 0, 10, {})
    assert plan.map.max() == 9 and (plan.offsets[:, -1] == 10).all()


@pytest.mark.parametrize("pool", [0, 1, 4])
def test_select(pool):
    generator = torch.Generator().manual_seed(1)
    scores = (torch.rand(3, 25, generator=generator) * 6).floor()
    scores[0, 3] = torch.nan
    scores[1, 5] = torch.inf
    mask = torch.rand(3, 25, generator=generator) < 0.2
    for keep in (2, 7, 25 - pool):
        for args in ({}, {"class_token": True}, {"distill_token": True, "padding_mask": mask}):
            got = OPS.token_select(scores, keep, pool, **args)
            assert torch.equal(got.long(), ref.select_reference(scores, keep, pool, **args))


def test_composition_is_one_plan_after_another():
    x = randn(3, 40, 6)
    first = fastops.match_tokens(x, r=12, class_token=True)
    y = fastops.merge_tokens(x, first)
    second = fastops.match_tokens(y, r=9, class_token=True, order="reference")
    both = first.then(second)
    check_plan(both)
    assert both.num_tokens == 40 and both.num_out == 40 - 12 - 9
    source = second.source() @ first.source()
    assert torch.equal(both.source(), source.clamp_max(1))
    total = fastops.merge_tokens(x, both, mode="sum")
    step = fastops.merge_tokens(fastops.merge_tokens(x, first, mode="sum"), second, mode="sum")
    torch.testing.assert_close(total, step)
    back = fastops.unmerge_tokens(fastops.unmerge_tokens(total, second), first)
    assert torch.equal(fastops.unmerge_tokens(total, both), back)
    assert torch.equal(MergePlan.identity(3, 40).then(first).map, first.map)


def test_composition_passes_holes_on():
    first, second = random_plan(4, 30, 12, seed=1), random_plan(4, 12, 5, seed=2)
    both = first.then(second)
    expected = torch.where(first.map >= 0, second.map.gather(1, first.map.clamp_min(0).long()), -1)
    assert torch.equal(both.map, expected)
    check_plan(both, full=False)


def test_from_map_drops_what_is_out_of_bounds():
    map = torch.tensor([[0, 5, -7, 2, 99]])
    plan = MergePlan.from_map(map, 3)
    assert plan.map.tolist() == [[0, -1, -1, 2, -1]]
    assert plan.offsets.tolist() == [[0, 1, 1, 2]]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("cls, distill", [(False, False), (True, False), (True, True)])
def test_match_tokens_limits(order, cls, distill):
    for n in (1, 2, 3, 4, 5, 11):
        metric = randn(2, n, 4)
        most = max(n - cls - distill, 0) // 2
        for r in (0, 1, 2, 100):
            plan = fastops.match_tokens(
                metric, r=r, class_token=cls, distill_token=distill, order=order
            )
            check_plan(plan)
            assert plan.num_out == n - min(r, most)
            assert (plan.lengths == plan.num_out).all()
            if cls:
                assert (plan.map[:, 0] == 0).all()
                assert ((plan.map == 0).sum(1) == 1).all()


def test_zero_and_nan_tokens_do_not_change_the_count():
    metric = randn(2, 40, 4)
    metric[0] = torch.nan
    metric[1] = 0
    plan = fastops.match_tokens(metric, r=20)
    check_plan(plan)
    assert plan.num_out == 20 and plan.lengths.tolist() == [20, 20]
    assert (plan.map[0, ::2] == plan.map[0, 1]).all()


def test_ratio_and_kth():
    metric = randn(2, 30, 4)
    assert fastops.match_tokens(metric, ratio=0.3).num_out == 21
    plan = fastops.match_tokens(metric, partition="kth", k=4)
    assert plan.num_out == 7
    check_plan(plan)
    assert fastops.match_tokens(metric, partition="kth", k=4, r=5).num_out == 25


def test_threshold_is_ragged():
    metric = randn(4, 50, 3)
    plan = fastops.match_tokens(metric, threshold=0.9, class_token=True)
    check_plan(plan)
    scores, _ = OPS.token_match(metric, class_token=True)
    assert plan.num_out == 50
    assert torch.equal(plan.lengths, 50 - (scores > 0.9).sum(1).int())
    assert plan.cu_seqlens.tolist() == [0, *plan.lengths.cumsum(0).tolist()]
    y, size, log_size = fastops.merge_tokens(metric, plan, size=torch.ones(4, 50))
    past = plan.out_padding_mask
    assert (y[past] == 0).all() and (size[past] == 0).all() and (log_size[past] == -torch.inf).all()
    assert (size.sum(1) == 50).all()
    limited = fastops.match_tokens(metric, threshold=0.9, r=3, class_token=True)
    assert (limited.lengths == torch.clamp(plan.lengths, min=47)).all()
    # The next layer takes the rows past the end for padding.
    again = fastops.match_tokens(y, threshold=0.9, padding_mask=past)
    check_plan(again)
    assert (again.map[past] == -1).all()


@pytest.mark.parametrize("partition", ["alternate", "kth", "random", "grid"])
@pytest.mark.parametrize("r", [0, 3, 30])
def test_padding_never_overflows(partition, r):
    generator = torch.Generator().manual_seed(5)
    args = {"grid": (6, 6), "stride": 3} if partition == "grid" else {}
    mask = torch.rand(64, 36, generator=generator) < torch.rand(64, 1, generator=generator)
    mask[0], mask[1], mask[2, ::2], mask[3, 1::2] = True, False, True, True
    metric = torch.randn(64, 36, 4, generator=generator)
    for cls in (False, True):
        if cls and partition == "grid":
            continue
        plan = fastops.match_tokens(
            metric, r=r, partition=partition, padding_mask=mask, class_token=cls, **args
        )
        check_plan(plan)
        assert torch.equal(plan.map >= 0, ~mask)


def test_sample_does_not_depend_on_its_batch():
    metric = randn(6, 80, 16)
    plan = fastops.match_tokens(metric, r=20, class_token=True)
    for b in range(6):
        alone = fastops.match_tokens(metric[b : b + 1], r=20, class_token=True)
        assert torch.equal(alone.map, plan.map[b : b + 1])


def test_grid():
    metric = randn(2, 1 + 7 * 9, 4)
    plan = fastops.match_tokens(
        metric, ratio=1.0, partition="grid", grid=(7, 9), stride=(2, 3), class_token=True
    )
    assert plan.num_out == 1 + 3 * 3
    check_plan(plan)
    top_left = [1 + y * 9 + x for y in (0, 2, 4) for x in (0, 3, 6)]
    assert plan.map[0, [0, *top_left]].tolist() == list(range(10))
    drawn = [
        fastops.match_tokens(
            metric, r=20, partition="grid", grid=(7, 9), class_token=True,
            generator=torch.Generator().manual_seed(4),
        ).map
        for _ in range(2)
    ]  # fmt: skip
    assert torch.equal(*drawn)


def test_random():
    metric = randn(5, 33, 4)
    plan = fastops.match_tokens(
        metric, r=10, partition="random", generator=torch.Generator().manual_seed(0)
    )
    check_plan(plan)
    assert plan.num_out == 23
    assert len({tuple(row) for row in plan.map.tolist()}) == 5
    assert fastops.match_tokens(metric, r=99, partition="random", class_token=True).num_out == 2


def test_prune():
    x, scores = randn(3, 20, 5), randn(3, 20, seed=9)
    y, plan = fastops.prune_tokens(x, scores, 6, return_plan=True)
    kept = scores.topk(6, 1).indices.sort(1).values
    assert torch.equal(y, x.gather(1, kept[..., None].expand(-1, -1, 5)))
    assert ((plan.map >= 0).sum(1) == 6).all()
    y = fastops.prune_tokens(x, scores, 6, pool=1)
    gone = torch.ones(3, 20, dtype=torch.bool).scatter(1, kept, False)
    rest = (x * gone[..., None]).sum(1) / gone.sum(1, keepdim=True)
    torch.testing.assert_close(y[:, 6], rest)
    size = torch.rand(3, 20) + 0.5
    y, total, _ = fastops.prune_tokens(x, scores, 0.3, pool=3, size=size, class_token=True)
    assert y.shape == (3, 9, 5)
    torch.testing.assert_close(total.sum(1), size.sum(1))
    assert torch.equal(y[:, 0], x[:, 0])


def test_prune_with_padding():
    x, scores = randn(2, 12, 3), randn(2, 12, seed=1)
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[0, 4:] = True
    y, plan = fastops.prune_tokens(x, scores, 6, padding_mask=mask, return_plan=True)
    assert plan.lengths.tolist() == [4, 6]
    assert torch.equal(y[0, :4], x[0, :4]) and (y[0, 4:] == 0).all()
    _, plan = fastops.prune_tokens(x, scores, 2, pool=1, padding_mask=mask, return_plan=True)
    assert torch.equal(plan.map >= 0, ~mask)


def test_from_map_takes_any_integers():
    map = torch.tensor([[0, 1, 2**32, -(2**40), 2**31, 1]])
    plan = MergePlan.from_map(map, 2)
    assert plan.map.tolist() == [[0, 1, -1, -1, -1, 1]]
    assert MergePlan.from_map(map.to(torch.int8), 2).map.tolist() == [[0, 1, 0, 0, 0, 1]]
    for given, error in (
        ({"num_out": 2.5}, TypeError),
        ({"num_out": -1}, ValueError),
        ({"num_out": 2, "lengths": "junk"}, TypeError),
        ({"num_out": 2, "lengths": torch.zeros(1)}, TypeError),
        ({"num_out": 2, "lengths": torch.zeros(3, dtype=torch.int32)}, ValueError),
    ):
        with pytest.raises(error, match=r"MergePlan\.from_map: expected"):
            MergePlan.from_map(map, **given)
    with pytest.raises(TypeError, match=r"expected other\.map of dtype int32, got torch\.int64"):
        plan.then(plan._replace(map=torch.zeros(1, 2, dtype=torch.int64)))


@pytest.mark.parametrize("flags", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("partition", ["random", "grid"])
def test_lists_leave_protected_tokens_out(partition, flags):
    prefix = sum(flags)
    n = 16 + prefix
    args = {"grid": (4, 4)} if partition == "grid" else {}
    plan = fastops.match_tokens(
        torch.randn(2, n, 8), r=6, partition=partition, class_token=flags[0],
        distill_token=flags[1], **args,
    )  # fmt: skip
    kept = [t for t, on in enumerate(flags) if on]
    alone = plan.source().sum(-1).gather(1, plan.map[:, kept].long())
    assert plan.num_out == n - 6 and (alone == 1).all() and (plan.map >= 0).all()
