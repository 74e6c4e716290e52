"""merge_tokens and unmerge_tokens against the float64 reference."""

from __future__ import annotations

import pytest
import torch

import fastops
from fastops import MergePlan
from fastops.merge.reference import MODES, merge_reference, unmerge_reference
from tests.merge.problems import OPS, random_plan
from tests.merge.test_match import randn
from tests.numerics import FLOATS, LAYOUTS, Error, assert_ratio, exact, lay_out, same_bits

pytestmark = pytest.mark.isa


def sizes(batch, n, dtype=torch.float32):
    generator = torch.Generator().manual_seed(11)
    return torch.randint(1, 9, (batch, n), generator=generator).to(dtype)


def check_merge(x, plan, size=None, mode="mean"):
    """Our rows within the ratio rule of plain PyTorch's."""
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    given = None if size is None else size.to(acc)
    y, merged, log_merged = fastops.merge_tokens(x, plan, size=given, mode=mode, return_size=True)
    wide, total = merge_reference(
        x.double(), plan.map, plan.num_out, None if size is None else size.double(), mode
    )
    # Plain PyTorch, accumulating as it should.
    peer, _ = merge_reference(x.to(acc), plan.map, plan.num_out, given, mode)
    magnitude, _ = merge_reference(
        x.double().abs(), plan.map, plan.num_out, None if size is None else size.double(),
        "max" if mode == "mlerp" else mode,
    )  # fmt: skip
    if mode == "mlerp":
        magnitude = magnitude.norm(dim=-1, keepdim=True).expand_as(magnitude)
    # float64 is its own reference: the peer's error is not seen, so a few roundings stand for it.
    luck = Error(4 * 2.0**-53, 4 * 2.0**-53) if x.dtype == torch.float64 else None
    assert_ratio(y, exact(wide), peer.to(x.dtype), size=exact(magnitude) + 1e-300, luck=luck)
    torch.testing.assert_close(merged.double(), total, rtol=1e-6, atol=0)
    torch.testing.assert_close(log_merged.double(), total.log(), rtol=1e-6, atol=1e-7)
    return y


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighted", [False, True])
def test_merge(dtype, mode, weighted):
    for batch, n, rows, channels in (
        (1, 1, 1, 1), (2, 7, 3, 5), (3, 40, 31, 16), (2, 33, 4, 130), (2, 20, 25, 64),
        (1, 300, 200, 48),
    ):  # fmt: skip
        plan = random_plan(batch, n, rows, seed=n)
        size = sizes(batch, n) if weighted else None
        check_merge(randn(batch, n, channels, dtype=dtype), plan, size, mode)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(dtype, layout):
    plan = random_plan(2, 21, 12)
    x = randn(2, 21, 19, dtype=dtype)
    for mode in MODES:
        straight = fastops.merge_tokens(x, plan, mode=mode, size=sizes(2, 21))
        other = fastops.merge_tokens(lay_out(x, layout), plan, mode=mode, size=sizes(2, 21))
        assert all(same_bits(a, b) for a, b in zip(straight, other, strict=True))
    y = straight[0]
    back = fastops.unmerge_tokens(lay_out(y, layout), plan, lay_out(x, layout))
    assert same_bits(back, fastops.unmerge_tokens(y, plan, x))


@pytest.mark.parametrize("dtype", FLOATS)
def test_heads(dtype):
    x = randn(2, 30, 3, 4, 16, dtype=dtype)[:, :, 1].transpose(1, 2)  # [B, H, N, D] of a fused qkv
    plan = random_plan(2, 30, 18)
    y = fastops.merge_tokens(x, plan)
    each = [fastops.merge_tokens(x[:, h], plan) for h in range(4)]
    assert same_bits(y, torch.stack(each, 1))
    back = fastops.unmerge_tokens(y, plan)
    assert same_bits(back, torch.stack([fastops.unmerge_tokens(e, plan) for e in each], 1))


def test_several_tensors_at_once():
    plan = random_plan(3, 40, 25)
    xs = (
        randn(3, 40, 33),
        randn(3, 2, 40, 16, dtype=torch.bfloat16),
        randn(1, 40, 7, dtype=torch.float16),
        randn(3, 40, 5, dtype=torch.float64),
    )
    size = sizes(3, 40)
    ys, merged, _ = fastops.merge_tokens(xs, plan, size=size)
    assert isinstance(ys, tuple) and merged.dtype == torch.float64
    for x, y in zip(xs, ys, strict=True):
        assert same_bits(y, fastops.merge_tokens(x, plan, size=size)[0])
    assert ys[2].shape == (3, 25, 7)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("residual", [False, True])
def test_unmerge(dtype, residual):
    plan = random_plan(2, 50, 20)
    y, r = randn(2, 20, 24, dtype=dtype), randn(2, 50, 24, dtype=dtype, seed=5)
    out = fastops.unmerge_tokens(y, plan, r if residual else None)
    wide = unmerge_reference(y.double(), plan.map, r.double() if residual else None)
    assert same_bits(out, wide.to(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", MODES)
def test_a_row_of_one_token_is_that_token(dtype, mode):
    x = randn(2, 64, 33, dtype=dtype)
    x[0, 0, :4] = torch.tensor([torch.inf, -torch.inf, 1e-40, -0.0], dtype=dtype)
    x[0, 1, 0] = torch.nan
    plan = MergePlan.identity(2, 64)
    y = fastops.merge_tokens(x, plan, mode=mode, size=sizes(2, 64) / 3)[0]
    assert same_bits(x, y)
    assert same_bits(fastops.unmerge_tokens(y, plan), x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_ones_stay_ones(dtype):
    plan = random_plan(2, 200, 9, holes=False)
    ones = torch.ones(2, 200, 21, dtype=dtype)
    size = torch.rand(2, 200, generator=torch.Generator().manual_seed(0)) * 3
    for given in (None, size):
        assert (fastops.merge_tokens(ones, plan, size=given, return_size=True)[0] == 1).all()


def test_size_is_conserved():
    size = sizes(2, 200)
    plan = random_plan(2, 200, 40, holes=False)
    _, merged, _ = fastops.merge_tokens(torch.ones(2, 200, 1), plan, size=size)
    assert torch.equal(merged.sum(1), size.sum(1))


def test_merge_undoes_unmerge():
    plan = random_plan(2, 90, 30, holes=False)
    y = randn(2, 30, 17)
    y[(plan.offsets.diff(dim=1) == 0)] = 0
    again = fastops.merge_tokens(fastops.unmerge_tokens(y, plan), plan)
    torch.testing.assert_close(again, y, rtol=3e-7, atol=0)


def test_sizes_of_zero():
    plan = MergePlan.from_map(torch.tensor([[0, 0, 1, 1]]), 2)
    x = randn(1, 4, 3)
    size = torch.tensor([[0.0, 0.0, 0.0, 2.0]])
    for mode in ("mean", "mlerp"):
        y, merged, log_merged = fastops.merge_tokens(x, plan, size=size, mode=mode)
        assert (y[0, 0] == 0).all() and merged.tolist() == [[0, 2]]
        assert log_merged[0, 0] == -torch.inf
    assert torch.equal(fastops.merge_tokens(x, plan, size=size)[0][0, 1], x[0, 3])


def test_max_of_nan():
    plan = MergePlan.from_map(torch.zeros(1, 3, dtype=torch.int32), 1)
    x = torch.tensor([[[1.0, torch.nan], [torch.nan, 2.0], [3.0, -torch.inf]]])
    assert fastops.merge_tokens(x, plan, mode="max").isnan().all()


@pytest.mark.large
@pytest.mark.parametrize("shape", [(8, 197, 181, 512), (1, 9000, 6000, 96)])
def test_large(shape):
    """Large enough for threads and streaming stores."""
    batch, n, rows, channels = shape
    x = randn(batch, n, channels)
    plan = random_plan(batch, n, rows)
    y = check_merge(x, plan, sizes(batch, n))
    alone = MergePlan(*(t[:1] for t in plan))
    assert same_bits(y[:1], fastops.merge_tokens(x[:1], alone, size=sizes(batch, n)[:1])[0])
    back = fastops.unmerge_tokens(y, plan)
    assert torch.equal(back, unmerge_reference(y, plan.map))


def test_threads_give_the_same_bits():
    x, plan = randn(1, 3000, 200), random_plan(1, 3000, 1000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fastops.merge_tokens(x, plan)
        torch.set_num_threads(5)
        assert same_bits(one, fastops.merge_tokens(x, plan))
    finally:
        torch.set_num_threads(before)


def wild(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31 - 1, shape, generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("mode", range(4))
def test_wild_plans_stay_in_bounds(mode):
    """Whatever stands in a plan, nothing outside the tensors is read or written, and every element
    of the result is (uninitialised memory would show as noise between two runs)."""
    x = randn(2, 37, 9)
    for seed in range(6):
        parts = [
            wild(2, 37, seed=seed) if seed % 2 else random_plan(2, 37, 12).map,
            wild(2, 13, seed=seed + 10) if seed % 3 else random_plan(2, 37, 12).offsets,
            wild(2, 37, seed=seed + 20) if seed % 5 else random_plan(2, 37, 12).perm,
        ]
        size = sizes(2, 37)
        runs = []
        for _ in range(2):
            torch.full((4096,), torch.nan)  # leaves its noise in the allocator's memory
            (y,), merged, _ = OPS.merge_tokens([x], *parts, size, mode)
            (dx,), dsize = OPS.merge_tokens_backward(
                [y], [x], [y], *parts, size, merged, merged, mode, True
            )
            runs.append((y, merged, dx, dsize, OPS.unmerge_tokens(y, *parts, x)))
        assert all(same_bits(a, b) for a, b in zip(*runs, strict=True))


def test_empty():
    shapes = ((0, 5, 3, 2), (2, 0, 0, 3), (2, 5, 0, 3), (2, 5, 3, 0), (2, 0, 4, 3))
    for batch, n, rows, channels in shapes:
        plan = MergePlan.from_map(torch.zeros(batch, n, dtype=torch.int32), rows)
        x = torch.ones(batch, n, channels, requires_grad=True)
        y = fastops.merge_tokens(x, plan)
        assert y.shape == (batch, rows, channels)
        out = fastops.unmerge_tokens(y, plan)
        assert out.shape == x.shape
        out.sum().backward()


@pytest.mark.parametrize("mode", MODES)
def test_each_sample_is_merged_by_itself(mode):
    """One of a batch has the rows that it has alone; and tokens that stay come back bit for bit."""
    x, metric = randn(5, 61, 24, dtype=torch.float32), randn(5, 61, 16, dtype=torch.float32, seed=1)
    size = torch.rand(5, 61, generator=torch.Generator().manual_seed(2)) + 0.5
    plan = fastops.match_tokens(metric, r=20, class_token=True)
    y, merged, _ = fastops.merge_tokens(x, plan, size=size, mode=mode)
    for b in range(5):
        alone = fastops.match_tokens(metric[b : b + 1], r=20, class_token=True)
        rows, sizes, _ = fastops.merge_tokens(x[b : b + 1], alone, size=size[b : b + 1], mode=mode)
        assert same_bits(rows[0], y[b]) and same_bits(sizes[0], merged[b])
    if mode != "sum":
        back = fastops.unmerge_tokens(y, plan)
        stays = plan.source().sum(-1).gather(1, plan.map.long()) == 1
        assert stays.any(1).all() and not stays.all(1).any()
        assert same_bits(back[stays], x[stays])
