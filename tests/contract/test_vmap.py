"""vmap against a loop, over x, over what goes with it, and nested."""

import pytest
import torch
from torch.func import vmap

import fastops

NAMES = ["softmax", "log_softmax", "logsumexp"]
X = torch.randn(6, 3, 5, 4)
WITH = {
    "mask": torch.rand(6, 5, 4) > 0.2,
    "bias": torch.randn(6, 4),
    "scale": torch.rand(6, 5),
    "scale of x's rank": torch.rand(6, 3, 1, 1),
    "lengths": torch.randint(1, 5, (6, 3, 5)),
}


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_dim", [0, 2])
@pytest.mark.parametrize("dim", [-1, 0, (0, 2)])
def test_x(name, in_dim, dim):
    f = getattr(fastops, name)
    same(vmap(lambda t: f(t, dim), in_dim)(X), torch.stack([f(t, dim) for t in X.unbind(in_dim)]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", WITH)
def test_other_arguments(name, key):
    f, values, keyword = getattr(fastops, name), WITH[key], key.split()[0]
    both = vmap(lambda t, v: f(t, -1, **{keyword: v}))(X, values)
    same(both, torch.stack([f(t, -1, **{keyword: v}) for t, v in zip(X, values, strict=True)]))
    alone = vmap(lambda v: f(X[0], -1, **{keyword: v}))(values)
    same(alone, torch.stack([f(X[0], -1, **{keyword: v}) for v in values]))
    shared = vmap(lambda t: f(t, -1, **{keyword: values[0]}))(X)
    same(shared, torch.stack([f(t, -1, **{keyword: values[0]}) for t in X]))


@pytest.mark.parametrize("name", NAMES)
def test_nested_and_scalars(name):
    f = getattr(fastops, name)
    nested = vmap(vmap(lambda t: f(t, 0)), in_dims=1)(X)
    same(nested, torch.stack([torch.stack([f(t, 0) for t in row]) for row in X.unbind(1)]))
    same(vmap(lambda t: f(t, -1))(X[:, 0, 0, 0]), torch.stack([f(t, -1) for t in X[:, 0, 0, 0]]))


@pytest.mark.parametrize("name", NAMES[:2])
def test_lse(name):
    f = getattr(fastops, name)
    ours = vmap(lambda t: f(t, return_lse=True))(X)
    same(ours, f(X, return_lse=True))
