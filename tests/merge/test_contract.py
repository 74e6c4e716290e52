"""opcheck, torch.compile, vmap, fake tensors, arrays, and the errors of bad arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap
from torch.library import opcheck

import fastops
from fastops import MergePlan
from fastops.merge.reference import MODES
from tests.merge.problems import OPS, random_plan
from tests.merge.test_match import randn, shuffled
from tests.merge.test_merge import sizes


def plan_parts(*args, **kwargs):
    return random_plan(*args, **kwargs)[:3]


def test_opcheck_match_and_plan():
    mask = torch.zeros(2, 13, dtype=torch.bool)
    mask[1, 10:] = True
    opcheck(OPS.token_match.default, (randn(2, 13, 4),))
    opcheck(OPS.token_match.default, (randn(2, 3, 13, 4).half(), None, 0, 0, 3, True, True, mask))
    lists = shuffled(2, 13, 7, 4)
    opcheck(OPS.token_match.default, (randn(2, 13, 4).double(), *lists.values()))
    scores, matches = OPS.token_match(randn(2, 13, 4))
    opcheck(OPS.token_plan.default, (scores, matches, 13, 3, 10))
    args = (None, 0, 0, 2, True, False, mask, 0.2, 1)
    opcheck(OPS.token_plan.default, (scores, matches, 13, 3, 13, *args))
    opcheck(OPS.token_select.default, (randn(2, 13), 4, 2, True, False, mask))
    first, second = random_plan(2, 13, 6), random_plan(2, 6, 3)
    opcheck(OPS.plan_compose.default, (first.map, second.map, 3))
    opcheck(OPS.plan_compose.default, (first.map, None, 6))


@pytest.mark.parametrize("mode", range(4))
@pytest.mark.parametrize("gradient", [False, True])
def test_opcheck_merge(mode, gradient):
    x, h = randn(2, 13, 4), randn(2, 3, 13, 5)
    size = sizes(2, 13)
    if gradient:
        x, h, size = (t.requires_grad_() for t in (x, h, size))
    parts = plan_parts(2, 13, 6)
    opcheck(OPS.merge_tokens.default, ([x, h], *parts, size, mode))
    opcheck(OPS.merge_tokens.default, ([x], *parts, None, mode))
    y = randn(2, 6, 4).requires_grad_(gradient)
    opcheck(OPS.unmerge_tokens.default, (y, *parts, x))
    opcheck(OPS.unmerge_tokens.default, (y, *parts))


def test_opcheck_merge_backward():
    x, y, parts, size = randn(2, 13, 4), randn(2, 6, 4), plan_parts(2, 13, 6), sizes(2, 13)
    merged = sizes(2, 6)
    args = ([y], [x], [y], *parts, size, merged, merged, 0, True)
    opcheck(OPS.merge_tokens_backward.default, args)
    opcheck(OPS.merge_tokens_backward.default, ([y], [], [], *parts, None, None, None, 1, False))


def layer(x, metric, size):
    plan = fastops.match_tokens(metric, r=5, class_token=True)
    (x, metric), size, log_size = fastops.merge_tokens((x, metric), plan, size=size)
    again = fastops.match_tokens(metric, r=4, class_token=True)
    y = fastops.merge_tokens(x.sin(), again, mode="max")
    both = plan.then(again)
    return fastops.unmerge_tokens(y, both) * 2, both, size + log_size


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (20, 23):
        x, metric, size = randn(2, n, 6), randn(2, n, 4, seed=1), sizes(2, n)
        inputs = [(x.clone().requires_grad_(), size.clone().requires_grad_()) for _ in range(2)]
        out = [f(a, metric, s) for f, (a, s) in zip((layer, compiled), inputs, strict=True)]
        assert isinstance(out[1][1], MergePlan) and torch.equal(out[0][1].map, out[1][1].map)
        for y, _, s in out:
            (y.sum() + s.sum()).backward()
        torch.testing.assert_close(out[0][0], out[1][0])
        for eager, traced in zip(*inputs, strict=True):
            torch.testing.assert_close(eager.grad, traced.grad)


@pytest.mark.parametrize("partition", ["random", "grid"])
def test_compile_lists(partition):
    """Each shape anew, then one whose sizes are symbols."""

    def layer(x):
        args = {"grid": (6, x.shape[1] // 6)} if partition == "grid" else {}
        plan = fastops.match_tokens(x, r=5, partition=partition, **args)
        return fastops.merge_tokens(x, plan)

    for dynamic in (None, True):
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for n in (24, 30, 36):
            x = torch.randn(2, n, 8)
            y = compiled(x)
            assert y.shape == (2, n - 5, 8)
            if partition == "grid":
                torch.testing.assert_close(y, layer(x))


def test_compile_ragged():
    """Rows that differ by sample, through two layers: no number leaves the device in between."""

    def layers(x, mask):
        plan = fastops.match_tokens(x, threshold=0.3, padding_mask=mask)
        y = fastops.merge_tokens(x, plan)
        again = fastops.match_tokens(y, threshold=0.3, padding_mask=plan.out_padding_mask)
        both = plan.then(again)
        y = fastops.unmerge_tokens(fastops.merge_tokens(y, again), both)
        return y, both.cu_seqlens, fastops.prune_tokens(x, x[..., 0], 4, pool=2)

    x, mask = randn(3, 20, 5), torch.rand(3, 20) < 0.2
    compiled = torch.compile(layers, fullgraph=True, backend="aot_eager")
    for a, b in zip(layers(x, mask), compiled(x, mask), strict=True):
        assert torch.equal(a, b)


def test_inductor():
    compiled = torch.compile(merged, fullgraph=True)
    x, m = randn(2, 30, 6), randn(2, 30, 4)
    torch.testing.assert_close(compiled(x, m), merged(x, m))


def merged(x, m):
    plan = fastops.match_tokens(m, r=7)
    return fastops.merge_tokens(x * 2, plan).relu() + 1


def test_export():
    class Model(torch.nn.Module):
        def forward(self, x):
            plan = fastops.match_tokens(x, r=3)
            return fastops.unmerge_tokens(fastops.merge_tokens(x, plan), plan)

    x = randn(2, 16, 4)
    program = torch.export.export(Model(), (x,))
    torch.testing.assert_close(program.module()(x), Model()(x))


def test_fake_tensors():
    mask = torch.rand(3, 21) < 0.3
    for arguments in (
        {"r": 4},
        {"r": 4, "padding_mask": mask},
        {"threshold": 0.5},
        {"partition": "kth", "k": 3},
        {"partition": "grid", "grid": (3, 7), "ratio": 0.4},
    ):
        x = randn(3, 21, 6).bfloat16()
        plan = fastops.match_tokens(x, **arguments)
        y, size, log_size = fastops.merge_tokens(x, plan, size=torch.ones(3, 21, 1))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = mode.from_tensor(x)
            given = {
                k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v
                for k, v in arguments.items()
            }
            their_plan = fastops.match_tokens(fake, **given)
            theirs = fastops.merge_tokens(
                fake, their_plan, size=mode.from_tensor(torch.ones(3, 21, 1))
            )
        for a, b in zip((*plan, y, size, log_size), (*their_plan, *theirs), strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_vmap():
    metric, x, size = randn(4, 2, 20, 5), randn(4, 2, 20, 3), sizes(4, 20)

    def call(metric, x, size):
        plan = fastops.match_tokens(metric, r=4)
        y, total, _ = fastops.merge_tokens(x, plan, size=size.expand(2, 20))
        return y, total, fastops.unmerge_tokens(y, plan), plan.then(MergePlan.identity(2, 16)).map

    together = vmap(call)(metric, x, size)
    apart = [torch.stack(parts) for parts in zip(*map(call, metric, x, size), strict=True)]
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a, b)
    other = vmap(call, (1, 3, None))(metric.movedim(0, 1), x.movedim(0, 3), size[0])
    expected = [call(m, t, size[0])[0] for m, t in zip(metric, x, strict=True)]
    assert torch.equal(other[0], torch.stack(expected))


def test_vmap_of_gradients():
    plan = random_plan(2, 9, 4)
    x, size = randn(5, 2, 9, 3), sizes(2, 9)
    for mode in MODES:

        def loss(x, mode=mode):
            return fastops.merge_tokens(x, plan, size=size, mode=mode)[0].square().sum()

        together = vmap(torch.func.grad(loss))(x)
        apart = torch.stack([torch.func.grad(loss)(t) for t in x])
        torch.testing.assert_close(together, apart)


def test_arrays():
    x = np.random.default_rng(0).standard_normal((2, 12, 4)).astype(np.float32)
    plan = fastops.match_tokens(x, r=3)
    y, size, _ = fastops.merge_tokens(x, plan, size=np.ones((2, 12), np.float32))
    assert isinstance(y, np.ndarray) and y.shape == (2, 9, 4) and isinstance(size, np.ndarray)
    back = fastops.unmerge_tokens(y, plan)
    assert isinstance(back, np.ndarray) and back.shape == x.shape
    tensors = fastops.merge_tokens(torch.from_numpy(x), plan)
    assert np.array_equal(y, tensors.numpy())


def test_autocast():
    x = randn(2, 12, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plan = fastops.match_tokens(x, r=3)
        assert fastops.merge_tokens(x, plan).dtype == torch.float32
    assert torch.equal(plan.map, fastops.match_tokens(x, r=3).map)


# ---- errors -------------------------------------------------------------------------------------

X = torch.randn(2, 10, 4)
BAD_MATCH = [
    ({}, ValueError, "expected r, ratio or threshold"),
    ({"r": 2, "ratio": 0.5}, ValueError, "expected r or ratio, got both"),
    ({"r": 2.0}, TypeError, "expected r to be an int, got float"),
    ({"r": True}, TypeError, "expected r to be an int, got bool"),
    ({"r": -1}, ValueError, "expected r >= 0, got -1"),
    ({"ratio": 1.5}, ValueError, "expected ratio in [0, 1], got 1.5"),
    ({"ratio": "1"}, TypeError, "expected ratio to be a number, got str"),
    ({"threshold": torch.ones(1)}, TypeError, "expected threshold to be a number, got Tensor"),
    ({"threshold": float("nan")}, ValueError, "expected threshold to be a number, got nan"),
    ({"r": 2, "partition": "odd"}, ValueError, "expected partition to be one of 'alternate'"),
    ({"r": 2, "partition": 2}, TypeError, "expected partition to be one of"),
    ({"r": 2, "order": "rest"}, ValueError, "expected order to be one of 'position', 'reference'"),
    ({"partition": "kth", "k": 1}, ValueError, "expected k >= 2, got 1"),
    ({"partition": "kth", "k": 2.5}, TypeError, "expected k to be an int, got float"),
    ({}, ValueError, "expected r, ratio or threshold to say how many tokens merge"),
    ({"partition": "random", "threshold": 0.5}, ValueError, "expected r or ratio to say how many"),
    ({"r": 2, "partition": "grid"}, TypeError, "expected grid to be a pair of ints, got None"),
    ({"r": 2, "partition": "grid", "grid": (3, 3)}, ValueError, "expected grid of 10 tokens"),
    ({"r": 2, "partition": "grid", "grid": (5, 2), "stride": 0}, ValueError, "stride >= 1"),
    ({"r": 2, "class_token": 1}, TypeError, "expected class_token to be a bool, got int"),
    ({"r": 2, "padding_mask": torch.ones(2, 10)}, TypeError, "expected padding_mask of dtype"),
    ({"r": 2, "padding_mask": torch.ones(2, 9, dtype=torch.bool)}, ValueError, "padding_mask of"),
    ({"r": 2, "generator": 3}, TypeError, "expected generator to be a torch.Generator, got int"),
]  # fmt: skip


@pytest.mark.parametrize("arguments, error, text", BAD_MATCH)
def test_bad_match(arguments, error, text):
    with pytest.raises(error) as caught:
        fastops.match_tokens(X, **arguments)
    assert str(caught.value).startswith("fastops.match_tokens: ")
    assert text in str(caught.value)


def test_bad_metric():
    with pytest.raises(ValueError, match=r"expected metric of shape \[B, N, C\]"):
        fastops.match_tokens(X[0], r=1)
    with pytest.raises(TypeError, match="expected metric of dtype float32"):
        fastops.match_tokens(X.int(), r=1)
    with pytest.raises(TypeError, match="expected metric to be a tensor or an array, got list"):
        fastops.match_tokens([1.0], r=1)


PLAN = random_plan(2, 10, 6)
BAD_MERGE = [
    ({"x": X[:, :9]}, ValueError, "expected x.shape[-2] == 10 (tokens of the plan), got 9"),
    ({"x": torch.ones(3, 10, 4)}, ValueError, "expected x.shape[0] == 2 (samples of the plan)"),
    ({"x": X[0]}, ValueError, "expected x of shape [B, N, C] or [B, H, N, C]"),
    ({"x": X.int()}, TypeError, "expected x of dtype float32"),
    ({"x": ()}, ValueError, "expected 1 to 8 tensors, got 0"),
    ({"plan": 3}, TypeError, "expected plan to be a MergePlan, got int"),
    ({"plan": PLAN._replace(map=PLAN.map.long())}, TypeError, "expected plan.map to be an int32"),
    ({"plan": PLAN._replace(perm=PLAN.perm[:, :4])}, ValueError, "expected a plan of map [B, N]"),
    ({"mode": "average"}, ValueError, "expected mode to be one of 'mean', 'sum'"),
    ({"size": torch.ones(2, 9)}, ValueError, "expected size of shape (2, 10) or (2, 10, 1)"),
    ({"size": torch.ones(2, 10).int()}, TypeError, "expected size of dtype float32"),
    ({"return_size": 1}, TypeError, "expected return_size to be a bool, got int"),
]  # fmt: skip


@pytest.mark.parametrize("arguments, error, text", BAD_MERGE)
def test_bad_merge(arguments, error, text):
    with pytest.raises(error) as caught:
        fastops.merge_tokens(**{"x": X, "plan": PLAN, **arguments})
    assert str(caught.value).startswith("fastops.merge_tokens: ")
    assert text in str(caught.value)


def test_bad_unmerge():
    y = torch.ones(2, 6, 4)
    with pytest.raises(ValueError, match=r"expected y.shape\[-2\] == 6 \(rows of the plan\)"):
        fastops.unmerge_tokens(X, PLAN)
    with pytest.raises(ValueError, match=r"expected residual of shape \(2, 10, 4\)"):
        fastops.unmerge_tokens(y, PLAN, y)
    with pytest.raises(TypeError, match=r"expected residual of dtype torch\.float32"):
        fastops.unmerge_tokens(y, PLAN, X.half())
    with pytest.raises(ValueError, match=r"other\.map of shape"):
        PLAN.then(PLAN)


def test_bad_prune():
    scores = torch.rand(2, 10)
    for keep, pool, text in ((11, 0, "keep \\+ pool <= 10"), (0.0, 0, "keep in"), (9, 2, "pool")):
        with pytest.raises(ValueError, match=text):
            fastops.prune_tokens(X, scores, keep, pool=pool)
    with pytest.raises(ValueError, match="expected scores of shape"):
        fastops.prune_tokens(X, scores[0], 3)
    with pytest.raises(ValueError, match="keep to cover class"):
        fastops.prune_tokens(X, scores, 0, class_token=True)
    for token in ("class_token", "distill_token"):
        with pytest.raises(TypeError, match=f"expected {token} to be a bool, got int"):
            fastops.prune_tokens(X, scores, 3, **{token: 1})
