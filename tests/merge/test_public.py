"""The compatible entry points against the public algorithms, restated in bench/peers/tome.py."""

from __future__ import annotations

import pytest
import torch

from bench.peers import tome as peer
from fastops.compat import tome, tomesd
from tests.merge.test_match import randn
from tests.numerics import same_bits

MODES = ["mean", "sum", "amax"]
FLAGS = [(False, False), (True, False), (True, True)]


def tokens(batch, n, c, seed=0):
    """Float64: no two similarities are close enough for rounding to matter."""
    return randn(batch, n, c, dtype=torch.float64, seed=seed)


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cls, distill", FLAGS)
@pytest.mark.parametrize("n", [8, 9, 50, 197])
def test_bipartite_soft_matching(n, cls, distill):
    metric, x = tokens(3, n, 8), tokens(3, n, 5, seed=1)
    for r in (-1, 0, 1, 3, n):
        merge, unmerge = tome.bipartite_soft_matching(metric, r, cls, distill)
        theirs, back = peer.tome(metric, r, cls, distill)
        for mode in MODES:
            same(merge(x, mode=mode), theirs(x, mode=mode))
        y = merge(x)
        if not distill:  # theirs does not put the distillation token back
            same(unmerge(y), back(y))
        size = torch.rand(3, n, 1, dtype=torch.float64) + 0.5
        for mine, other in zip(
            tome.merge_wavg(merge, x, size), peer.weighted(theirs, x, size), strict=True
        ):
            same(mine, other)
        source = tome.merge_source(merge, x)
        same(source, theirs(torch.eye(n, dtype=x.dtype).expand(3, n, n), mode="amax"))
        same(
            tome.merge_source(merge, x, source[:, :, :5].mT.mT.expand(3, -1, 5))
            if r <= 0
            else source,
            source if r > 0 else source[:, :, :5],
        )


@pytest.mark.parametrize("n, c", [(65, 48), (197, 64), (400, 96)])
def test_the_same_map_in_fp32(n, c):
    """As the public algorithm in fp32, for samples whose choices rounding does not decide."""
    metric, eye = randn(12, n, c, dtype=torch.float32), torch.eye(n).expand(12, n, n)
    plan = tome.bipartite_soft_matching(metric, 16, True)[0].plan
    theirs, _ = peer.tome(metric, 16, True)
    unit = torch.nn.functional.normalize(metric.double(), dim=-1)
    scores = (unit[:, 2::2] @ unit[:, 1::2].mT).topk(2, -1).values  # the class token stays
    ranked = scores[..., 0].sort(-1, descending=True).values
    clear = ((scores[..., 0] - scores[..., 1]).amin(-1) > 1e-5) & (
        ranked[:, 15] - ranked[:, 16] > 1e-5
    )
    assert clear.sum() >= 6
    assert torch.equal(plan.source()[clear], theirs(eye, mode="amax")[clear])


def test_wavg_of_a_callable_of_ones_own():
    metric, x = tokens(2, 9, 8), tokens(2, 9, 4, seed=1)
    size = torch.rand(2, 9, 1, dtype=torch.float64) + 0.5
    merge, _ = tome.bipartite_soft_matching(metric, 3)
    theirs, _ = peer.tome(metric, 3)
    wrapped = tome.merge_wavg(lambda t, mode="mean": merge(t, mode=mode), x, size)
    for mine, other in zip(wrapped, peer.weighted(theirs, x, size), strict=True):
        same(mine, other)
    nothing, _ = tome.bipartite_soft_matching(metric, 0)
    assert tome.merge_wavg(nothing, x, size) == (x, size)


def test_layers_of_tome():
    """Twelve layers, sizes and sources carried along."""
    x, theirs_x = tokens(2, 197, 16), tokens(2, 197, 16)
    size = theirs_size = source = None
    for layer in range(12):
        turn = tokens(16, 16, 1, seed=layer + 50)[..., 0]
        merge, _ = tome.bipartite_soft_matching(x @ turn, 16, True)
        theirs, _ = peer.tome(theirs_x @ turn, 16, True)
        source = tome.merge_source(merge, x, source)
        x, size = tome.merge_wavg(merge, x, size)
        theirs_x, theirs_size = peer.weighted(theirs, theirs_x, theirs_size)
        same(x, theirs_x)
        same(size.double(), theirs_size)
    assert x.shape[1] == 11 and size.sum() == 2 * 197
    assert torch.equal(source.sum(-1, keepdim=True), size.double())


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_kth(k):
    for n in (12, 14, 31):
        metric, x = tokens(2, n, 6), tokens(2, n, 4, seed=1)
        ours, unmerge = tome.kth_bipartite_soft_matching(metric, k)
        for mode in MODES:
            same(ours(x, mode=mode), peer.kth(metric, k)(x, mode=mode))
        assert unmerge(ours(x)).shape == x.shape


def test_random():
    metric, x = tokens(3, 40, 6), tokens(3, 40, 4, seed=1)
    for r in (0, 1, 17, 39):
        torch.manual_seed(7)
        ours, _ = tome.random_bipartite_soft_matching(metric, r)
        torch.manual_seed(7)
        theirs = peer.random(metric, r)
        for mode in MODES:
            same(ours(x, mode=mode), theirs(x, mode=mode))


@pytest.mark.parametrize("no_rand", [False, True])
@pytest.mark.parametrize("w, h, sx, sy", [(8, 8, 2, 2), (9, 7, 2, 2), (10, 6, 3, 2)])
def test_tomesd(no_rand, w, h, sx, sy):
    metric, x = tokens(2, w * h, 8), tokens(2, w * h, 5, seed=1)
    for r in (0, 1, w * h // 2, 1000):
        args = (w, h, sx, sy, r, no_rand)
        ours, back = tomesd.bipartite_soft_matching_random2d(
            metric, *args, torch.Generator().manual_seed(3)
        )
        theirs, theirs_back = peer.tomesd(metric, *args, torch.Generator().manual_seed(3))
        for mode in MODES:
            same(ours(x, mode=mode), theirs(x, mode=mode))
        assert same_bits(back(ours(x)), back(ours(x)))
        same(back(ours(x)), theirs_back(theirs(x)))


def test_tomesd_package():
    """tomesd itself: another order of rows, but the same tokens after the way there and back."""
    package = pytest.importorskip("tomesd.merge")
    metric, x = tokens(2, 64, 8), tokens(2, 64, 5, seed=1)
    args = (8, 8, 2, 2, 32)
    for no_rand in (False, True):
        ours = tomesd.bipartite_soft_matching_random2d(
            metric, *args, no_rand, torch.Generator().manual_seed(3)
        )
        theirs = package.bipartite_soft_matching_random2d(
            metric, *args, no_rand, torch.Generator().manual_seed(3)
        )
        same(ours[1](ours[0](x)), theirs[1](theirs[0](x)))


def test_bad_mode():
    merge, _ = tome.bipartite_soft_matching(tokens(1, 8, 4), 2)
    with pytest.raises(ValueError, match="expected mode to be one of mean, sum, amax"):
        merge(tokens(1, 8, 4), mode="prod")
