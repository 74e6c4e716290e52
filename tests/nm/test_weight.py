"""NMWeight: moving, saving, loading, and the packings behind it."""

import copy
import gc
import io
import pickle

import pytest
import torch
import torch.nn.functional as F

import fastops
from fastops.nm import packing
from tests.nm.samples import DTYPES, randn, sparse

X = randn(4, 16)


def test_what_it_is():
    _, weight = sparse(6, 16, "2:4", torch.bfloat16)
    assert weight.shape == (6, 16) and weight.out_features == 6 and weight.in_features == 16
    assert weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    assert "NMWeight(2:4, shape=(6, 16), dtype=torch.bfloat16" in repr(weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_to_dtype(dtype):
    w, weight = sparse(6, 16, "2:4")
    moved = weight.to(dtype)
    assert moved.dtype == dtype and torch.equal(moved.dense(), w.to(dtype))
    assert (moved is weight) == (dtype == torch.float32)
    with pytest.raises(TypeError, match="expected the new values of dtype"):
        weight.to(torch.float64)


def test_pickle_and_copy():
    w, weight = sparse(6, 16, "2:4")
    for other in (pickle.loads(pickle.dumps(weight)), copy.deepcopy(weight), copy.copy(weight)):
        assert torch.equal(other.dense(), w) and other.pattern == "2:4"


@pytest.mark.parametrize("whole", [False, True])
def test_saved_under_weights_only(whole):
    w, weight = sparse(6, 16, "2:4", torch.float16)
    buffer = io.BytesIO()
    torch.save(weight if whole else weight.state_dict(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    loaded = loaded if whole else fastops.NMWeight.from_state_dict(loaded)
    assert torch.equal(loaded.dense(), w)


def test_broken_files_are_refused():
    _, weight = sparse(6, 16, "2:4")
    state = weight.state_dict()
    state["indices"] = torch.full_like(state["indices"], 0xFF)
    with pytest.raises(ValueError, match=r"rise strictly below 4 .* row 0, group 0"):
        fastops.NMWeight.from_state_dict(state)
    broken = weight.__getstate__() | {"indices": state["indices"]}
    with pytest.raises(ValueError, match="rise strictly"):
        fastops.NMWeight.__new__(fastops.NMWeight).__setstate__(broken)
    with pytest.raises(KeyError):
        fastops.NMWeight.from_state_dict({"values": weight.values})


def test_refusals():
    _, w = sparse(6, 16, "2:4")
    make = fastops.NMWeight
    with pytest.raises(ValueError, match=r"expected values of shape \[out_features, 8\]"):
        make(w.values[:, :4], w.indices, "2:4", 16)
    with pytest.raises(ValueError, match=r"expected indices of shape \[6, 2\]"):
        make(w.values, w.indices[:, :1], "2:4", 16)
    with pytest.raises(TypeError, match=r"expected indices of dtype torch\.uint8"):
        make(w.values, w.indices.int(), "2:4", 16)
    with pytest.raises(TypeError, match="expected values of dtype"):
        make(w.values.double(), w.indices, "2:4", 16)
    with pytest.raises(ValueError, match="expected in_features divisible by 4"):
        make(w.values, w.indices, "2:4", 15)
    with pytest.raises(TypeError, match="expected in_features to be an int"):
        make(w.values, w.indices, "2:4", 16.0)


def test_direct_op_calls_are_safe():
    """torch.ops.fastops.* without the Python checks: errors, never a stray access."""
    _, w = sparse(6, 16, "2:4")
    ops = torch.ops.fastops
    with pytest.raises(RuntimeError, match="expected indices of shape"):
        ops.nm_linear(X, w.values, w.indices[:, :1].contiguous(), 2, 4)
    with pytest.raises(RuntimeError, match=r"expected values of shape"):
        ops.nm_linear(randn(4, 12), w.values, w.indices, 2, 4)
    with pytest.raises(RuntimeError, match="differ in dtype"):
        ops.nm_linear(X.half(), w.values, w.indices, 2, 4)
    with pytest.raises(RuntimeError, match="1 <= N <= M"):
        ops.nm_mask(X, 5, 4)
    with pytest.raises(RuntimeError, match="not of this weight"):
        ops._nm_matmul(X, w.values.flatten()[:9], w.indices.flatten(), None, 6, 16, 2, 4, 2, 0)


@pytest.mark.parametrize("rows", [1, 40])
def test_changes_of_the_values_are_seen(rows):
    w, weight = sparse(6, 16, "2:4")
    x = randn(rows, 16)
    for step in range(4):
        torch.testing.assert_close(fastops.nm_linear(x, weight), F.linear(x, weight.dense()))
        with torch.no_grad():
            weight.values.mul_(step + 2)
    assert not torch.equal(weight.dense(), w)


def test_changes_of_the_indices_are_seen():
    w, weight = sparse(6, 16, "2:4")
    other = fastops.nm_compress(w.flip(1).contiguous(), "2:4")
    fastops.nm_linear(X, weight)
    weight.indices.copy_(other.indices)
    torch.testing.assert_close(fastops.nm_linear(X, weight), F.linear(X, weight.dense()))


def test_packings_are_shared_by_views_and_die_with_the_weight():
    packing.clear_packings()
    _, weight = sparse(6, 16, "2:4")
    for _ in range(3):
        fastops.nm_linear(X, weight.detach())
    assert len(packing._weights) == 1
    (entry,) = packing._weights.values()
    assert len(entry.content) == 1
    del weight
    gc.collect()
    assert entry.storage.expired()
    _, other = sparse(6, 16, "2:4", seed=5)
    fastops.nm_linear(X, other)
    assert len(packing._weights) == 1  # the dead one was swept
    packing.clear_packings()


def test_inference_weights_work_and_say_so():
    packing._warn_uncached.cache_clear()
    with torch.inference_mode():
        w, weight = sparse(6, 16, "2:4")
        with pytest.warns(UserWarning, match="packed at every call"):
            y = fastops.nm_linear(X, weight)
        torch.testing.assert_close(y, F.linear(X, w))
        weight.values.mul_(2)
        torch.testing.assert_close(fastops.nm_linear(X, weight), F.linear(X, 2 * w))
