"""The short ways of match_tokens and merge_tokens: the same answers, and only where they may be."""

import pytest
import torch

import fastops
from fastops.merge import functional
from tests.numerics import same_bits

X = torch.randn(3, 21, 8, generator=torch.Generator().manual_seed(0))
SIZE = torch.arange(1.0, 64.0).view(3, 21)
MATCHES = [
    {"r": 4},
    {"ratio": 0.3},
    {"r": 100, "class_token": True},
    {"r": 5, "order": "reference"},
]


@pytest.fixture
def taken(monkeypatch):
    """Counts the calls that went straight."""
    calls = []
    for name in ("_straight_plan", "_straight_merge"):
        op = getattr(functional, name)

        def counting(*args, op=op):
            calls.append(op)
            return op(*args)

        monkeypatch.setattr(functional, name, counting)
    return calls


@pytest.mark.parametrize("args", MATCHES)
def test_same_plan_either_way(taken, args, monkeypatch):
    plan = fastops.match_tokens(X, **args)
    assert len(taken) == 1
    monkeypatch.setattr(functional, "straight", lambda *_: False)
    long = fastops.match_tokens(X, **args)
    assert len(taken) == 1
    assert type(plan) is type(long) is fastops.MergePlan
    assert all(same_bits(a, b) for a, b in zip(plan, long, strict=True))


def test_another_device_is_refused(taken):
    plan = fastops.match_tokens(X, r=4)
    taken.clear()
    with pytest.raises(ValueError, match="expected size on cpu as x is, got meta"):
        fastops.merge_tokens(X, plan, size=SIZE.to("meta"))
    for field in ("map", "offsets", "perm"):
        elsewhere = plan._replace(**{field: getattr(plan, field).to("meta")})
        with pytest.raises(ValueError, match=f"expected plan.{field} on cpu as x is, got meta"):
            fastops.merge_tokens(X, elsewhere)
    assert not taken


@pytest.mark.parametrize("size", [None, SIZE, SIZE[..., None]])
def test_same_rows_either_way(taken, size, monkeypatch):
    plan = fastops.match_tokens(X, r=4)
    taken.clear()
    given = fastops.merge_tokens(X, plan, size=size)
    assert len(taken) == 1
    monkeypatch.setattr(functional, "straight", lambda *_: False)
    expected = fastops.merge_tokens(X, plan, size=size)
    assert len(taken) == 1
    if size is None:
        given, expected = (given,), (expected,)
    assert [t.shape for t in given] == [t.shape for t in expected]
    assert all(same_bits(a, b) for a, b in zip(given, expected, strict=True))


def test_derivatives_and_transforms_take_the_long_way(taken):
    plan = fastops.match_tokens(X, r=4)
    taken.clear()
    assert fastops.merge_tokens(X.clone().requires_grad_(), plan).requires_grad
    size = SIZE.clone().requires_grad_()
    assert fastops.merge_tokens(X, plan, size=size)[1].requires_grad
    torch.vmap(lambda x: fastops.merge_tokens(x, plan))(torch.stack([X, X]))
    assert not taken


def test_one_sample_for_all():
    """What the kernel refuses the long way may still serve."""
    plan = fastops.match_tokens(X, r=4)
    y = fastops.merge_tokens(X[:1], plan)
    assert same_bits(y[2], fastops.merge_tokens(X[:1].expand(3, -1, -1).clone(), plan)[2])


def test_refusals_are_the_same():
    with pytest.raises(TypeError, match="expected r to be an int, got bool"):
        fastops.match_tokens(X, r=True)
    with pytest.raises(TypeError, match="expected class_token to be a bool"):
        fastops.match_tokens(X, r=1, class_token=1)
    with pytest.raises(ValueError, match="expected r >= 0"):
        fastops.match_tokens(X, r=-1)
    with pytest.raises(ValueError, match="expected metric of shape"):
        fastops.match_tokens(X[0], r=1)
    with pytest.raises(TypeError, match="expected metric to be a tensor"):
        fastops.match_tokens(None, r=1)
    plan = fastops.match_tokens(X, r=4)
    with pytest.raises(TypeError, match="expected size"):
        fastops.merge_tokens(X, plan, size=SIZE.long())
    with pytest.raises(ValueError, match="expected size of shape"):
        fastops.merge_tokens(X, plan, size=SIZE[:, :3])
    with pytest.raises(TypeError, match="expected x to be a tensor"):
        fastops.merge_tokens(None, plan)
