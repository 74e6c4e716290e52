"""The short way of a product that repeats: taken where it may be, not where anything changed."""

import gc

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastops
from fastops.nm import packing, repeat
from tests.nm.samples import DTYPES, judge, randn, sparse
from tests.numerics import same_bits


@pytest.fixture
def taken(monkeypatch):
    """Counts the products that went the short way."""
    calls, matmul = [], repeat._matmul

    def counting(*args):
        calls.append(args)
        return matmul(*args)

    monkeypatch.setattr(repeat, "_matmul", counting)
    return calls


def repeated(pattern="2:4", dtype=torch.float32, rows=2):
    """A weight whose product with x was just computed, so that the next may go the short way."""
    w, weight = sparse(24, 32, pattern, dtype)
    x = randn(rows, 32, dtype=dtype)
    fastops.nm_linear(x, weight)
    return x, w, weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_same_bits_either_way(taken, dtype, activation):
    x, w, weight = repeated(dtype=dtype)
    bias = randn(24, dtype=dtype)
    for given in (x, randn(32, 2, dtype=dtype).t(), x[:1].expand(2, 32)):
        packing.clear_packings()
        first = fastops.nm_linear(given, weight, bias, activation)
        assert not taken
        assert same_bits(fastops.nm_linear(given, weight, bias, activation), first)
        assert taken.pop()
    judge(fastops.nm_linear(x, weight, bias), x, w, bias)
    assert taken.pop()


def test_modules_go_it_too(taken):
    module = fastops.nn.NMLinear(32, 24, "2:4")
    x = randn(3, 32)
    with torch.no_grad():
        first = module(x)
        assert same_bits(module(x), first)
    assert taken


def in_place(w, weight):
    weight.values.mul_(2)


def swapped(w, weight):
    weight.values.data = weight.values.data * 2


def swapped_twice(w, weight):
    """The second may come to lie where the first was."""
    weight.values.data = weight.values.data * 4
    weight.values.data = weight.values.data / 2


@pytest.mark.parametrize("change", [in_place, swapped, swapped_twice])
def test_changed_values_are_seen(change):
    for _ in range(8):
        x, w, weight = repeated()
        before = fastops.nm_linear(x, weight)
        change(w, weight)
        assert same_bits(fastops.nm_linear(x, weight), before * 2)


def test_changed_indices_are_seen():
    w = torch.zeros(4, 8)
    w[:, ::4] = 1  # kept at place 0, with a stored zero at place 1
    weight = fastops.nm_compress(w, "1:4")
    x = randn(2, 8)
    assert torch.equal(fastops.nm_linear(x, weight)[:, 0], x[:, 0] + x[:, 4])
    weight.indices.fill_(0b1010)  # place 2 of both groups
    assert torch.equal(fastops.nm_linear(x, weight)[:, 0], x[:, 2] + x[:, 6])


def test_another_pattern_over_the_same_memory():
    w = torch.zeros(4, 32)
    w[:, 1::16] = w[:, 11::16] = 1  # as 2:16 that is columns 1 and 3 of each 16
    weight = fastops.nm_compress(w, "1:8")
    other = fastops.NMWeight(weight.values, weight.indices, "2:16", 32)
    x = randn(2, 32)
    for _ in range(2):
        judge(fastops.nm_linear(x, weight), x, weight.dense(), None)
        judge(fastops.nm_linear(x, other), x, other.dense(), None)
    assert not torch.equal(weight.dense(), other.dense())


def test_derivatives_are_kept(taken):
    x, _, weight = repeated()
    assert fastops.nm_linear(x.requires_grad_(), weight).requires_grad
    weight.requires_grad_()
    assert fastops.nm_linear(x.detach(), weight).requires_grad
    bias = randn(24).requires_grad_()
    assert fastops.nm_linear(x.detach(), weight.detach(), bias).requires_grad
    assert not taken
    with torch.no_grad():
        fastops.nm_linear(x, weight)
        assert not fastops.nm_linear(x, weight).requires_grad
    assert taken


def test_what_must_see_the_product_does(taken):
    x, _, weight = repeated()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fastops.nm_linear(x, weight).dtype == torch.bfloat16
    each = torch.vmap(lambda t: fastops.nm_linear(t, weight))(torch.stack([x, 2 * x]))
    assert torch.allclose(each[1], 2 * each[0])
    taken.clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fastops.nm_linear(x, weight)
    assert not taken


def test_refusals_are_the_same():
    x, _, weight = repeated()
    with pytest.raises(TypeError, match=r"expected x of dtype torch\.float32"):
        fastops.nm_linear(x.half(), weight)
    with pytest.raises(ValueError, match=r"expected x\.shape"):
        fastops.nm_linear(x[:, :8], weight)
    with pytest.raises(ValueError, match="expected bias of shape"):
        fastops.nm_linear(x, weight, randn(23))
    with pytest.raises(TypeError, match="expected bias of dtype"):
        fastops.nm_linear(x, weight, randn(24).half())
    with pytest.raises(ValueError, match="expected activation"):
        fastops.nm_linear(x, weight, None, "tanh")
    with pytest.raises(TypeError, match="expected activation"):
        fastops.nm_linear(x, weight, None, [])
    with pytest.raises(TypeError, match="expected x to be"):
        fastops.nm_linear([1.0], weight)


def test_nothing_outlives_the_weight():
    before = len(repeat._last)
    x, _, weight = repeated()
    assert len(repeat._last) == before + 1
    packing.clear_packings()
    assert not repeat._last
    fastops.nm_linear(x, weight)
    assert len(repeat._last) == 1
    del weight
    gc.collect()
    assert not repeat._last
