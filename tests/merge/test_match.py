"""token_match against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from tests.merge.problems import OPS, Problem
from tests.numerics import FLOATS, LAYOUTS, lay_out

pytestmark = pytest.mark.isa

SIZES = [
    (1, 1, 3), (1, 2, 1), (3, 3, 5), (2, 7, 16), (2, 33, 17), (4, 64, 64), (2, 99, 80),
    (1, 197, 64), (2, 131, 320), (1, 300, 7), (3, 150, 72), (2, 301, 136), (1, 40, 1608),
]  # fmt: skip


def randn(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def shuffled(batch, n, num_src, num_dst, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.stack([torch.randperm(n, generator=generator) for _ in range(batch)])
    return {"tokens": tokens.int(), "num_src": num_src, "num_dst": num_dst}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_sizes(dtype, size):
    Problem(randn(*size, dtype=dtype)).check_match()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(dtype, layout):
    metric = randn(2, 21, 19, dtype=dtype)
    straight = OPS.token_match(metric)
    other = Problem(lay_out(metric, layout)).check_match()
    assert all(torch.equal(a, b) for a, b in zip(straight, other, strict=True))


@pytest.mark.parametrize("dtype", FLOATS)
def test_heads_are_averaged(dtype):
    qkv = randn(2, 23, 3, 4, 16, dtype=dtype)  # [B, N, 3, H, D], as a fused projection makes it
    Problem(qkv[:, :, 1].transpose(1, 2)).check_match()


@pytest.mark.parametrize("k", [2, 3, 4, 7])
@pytest.mark.parametrize("flags", [(False, False), (True, False), (True, True), (False, True)])
def test_kth_and_protected(k, flags):
    for n in (1, 2, 3, 4, 9, 50):
        partition = {"k": k, "class_token": flags[0], "distill_token": flags[1]}
        Problem(randn(2, n, 6), partition).check_match()


@pytest.mark.parametrize("dtype", FLOATS)
def test_token_lists(dtype):
    metric = randn(3, 40, 12, dtype=dtype)
    Problem(metric, shuffled(3, 40, 25, 10)).check_match()
    Problem(metric, shuffled(1, 40, 5, 35)).check_match()
    Problem(metric, shuffled(3, 40, 0, 40)).check_match()
    Problem(metric, shuffled(3, 40, 40, 0)).check_match()
    Problem(metric, {**shuffled(3, 40, 20, 20), "class_token": True}).check_match()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95, 1.0])
def test_padding(share):
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(4, 37, generator=generator) < share
    Problem(randn(4, 37, 8), {"padding_mask": mask, "class_token": True}).check_match()
    wide = torch.stack([mask, ~mask], -1)[..., 0]  # strided
    Problem(randn(4, 37, 8), {"padding_mask": wide, "k": 3}).check_match()


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_vectors(dtype):
    metric = randn(1, 24, 9, dtype=dtype)
    metric[0, 2] = 0
    metric[0, 5] = 0
    metric[0, 8, 3] = torch.nan
    metric[0, 11, 1] = torch.nan
    metric[0, 14, 2] = torch.inf
    metric[0, 17, 2] = -torch.inf
    scores, matches = Problem(metric).check_match()
    assert scores[0, 1] == 0  # a zero source: cosine 0 with all
    assert scores[0, 4] == scores[0, 7] == -torch.inf
    assert matches[0, 4] == matches[0, 7] == 0
    assert not ((matches[0] == 5) | (matches[0] == 8)).any()  # destinations that are no numbers


@pytest.mark.parametrize("exponent", [-140, -126, -70, 60, 120, 127])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_magnitudes(exponent, dtype):
    scale = torch.tensor(2.0, dtype=torch.float64) ** exponent
    metric = (randn(2, 30, 16, dtype=torch.float64).clamp(-0.9, 0.9) * scale).to(dtype)
    whole, rows = Problem(metric), metric.clone()
    rows[:, ::3] = randn(2, 10, 16, dtype=dtype)  # beside others of any magnitude
    heads = Problem(torch.stack([metric, metric], 1))
    if dtype == torch.float32 or exponent < 127:  # the sum of two would be infinite
        heads.check_match()
    whole.check_match()
    Problem(rows).check_match()


def test_ties_take_the_lowest_index():
    for n, c in ((40, 8), (700, 3), (1100, 320)):
        metric = torch.ones(2, n, c)
        scores, matches = OPS.token_match(metric)
        assert (matches == 0).all()
        assert (scores == scores[0, 0]).all()
    metric = randn(1, 64, 8)
    metric[0, 33] = metric[0, 7]  # two equal destinations
    _, matches = OPS.token_match(metric)
    assert not (matches == 16).any()


def test_blocks_of_destinations():
    """More destinations than are packed at a time."""
    Problem(randn(1, 900, 640)).check_match()


def test_sample_alone_gives_the_same_bits():
    metric = randn(5, 150, 40)
    together = OPS.token_match(metric)
    for b in range(5):
        alone = OPS.token_match(metric[b : b + 1])
        assert all(torch.equal(t[b : b + 1], a) for t, a in zip(together, alone, strict=True))


def test_threads_give_the_same_bits():
    metric = randn(1, 1200, 24)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = OPS.token_match(metric)
        torch.set_num_threads(4)
        four = OPS.token_match(metric)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, four, strict=True))


def test_empty():
    for shape in ((0, 5, 3), (2, 0, 3), (2, 5, 0)):
        scores, matches = OPS.token_match(torch.empty(shape))
        assert scores.shape == matches.shape == (shape[0], shape[1] - shape[1] // 2)
    assert (OPS.token_match(torch.empty(2, 5, 0))[0] == 0).all()


def test_wrong_lists_are_not_followed():
    tokens = torch.randint(-(2**31), 2**31 - 1, (2, 20), dtype=torch.int32)
    scores, matches = OPS.token_match(randn(2, 20, 4), tokens, 12, 8)
    assert ((matches == -1) & (scores == -torch.inf)).all()
