"""NumPy arrays and other DLPack producers: no copies, and answers in kind."""

import sys
import types

import numpy as np
import pytest
import torch

import fastops

NAMES = ["softmax", "log_softmax", "logsumexp"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_numpy(name, dtype):
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(dtype)
    for array in (x, x[:, ::2], x.T):
        ours = getattr(fastops, name)(array, -1)
        theirs = getattr(torch, name)(torch.from_numpy(array), -1).numpy()
        assert isinstance(ours, np.ndarray) and ours.dtype == dtype
        np.testing.assert_allclose(ours, theirs, rtol=2e-3 if dtype == np.float16 else 1e-5)


def test_numpy_everything():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(3, 4)).astype(np.float32), rng.random((3, 4)) > 0.2
    bias, lengths = rng.normal(size=4).astype(np.float32), np.array([2, 3, 4])
    scale = rng.random(3).astype(np.float32)
    given = {"mask": mask, "bias": bias, "lengths": lengths, "scale": scale}
    out, lse = fastops.softmax(x, **given, masked_rows="zero", return_lse=True, dtype=np.float64)
    tensors = {key: torch.from_numpy(value) for key, value in given.items()}
    expected = fastops.softmax(
        torch.from_numpy(x), **tensors, masked_rows="zero", return_lse=True, dtype=torch.float64
    )
    assert isinstance(out, np.ndarray) and isinstance(lse, np.ndarray) and out.dtype == np.float64
    np.testing.assert_array_equal(out, expected[0].numpy())
    np.testing.assert_array_equal(lse, expected[1].numpy())


def test_numpy_out_and_in_place():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    expected = torch.softmax(torch.from_numpy(x), -1).numpy()
    out, lse = np.empty_like(x), np.empty(3, np.float32)
    assert fastops.softmax(x, out=out) is out
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    pair = fastops.softmax(x, out=(out, lse), return_lse=True)
    assert pair[0] is out and pair[1] is lse
    assert fastops.softmax(x, out=x) is x
    np.testing.assert_allclose(x, expected, rtol=1e-6)


def test_read_only_numpy_is_read():
    x = np.ones((2, 4), np.float32)
    x.flags.writeable = False
    np.testing.assert_array_equal(fastops.softmax(x), np.full((2, 4), 0.25, np.float32))


def test_tensor_x_with_numpy_mask_answers_a_tensor():
    mask = np.array([True, False, True])
    out = fastops.softmax(torch.zeros(3), mask=mask)
    assert torch.equal(out, torch.tensor([0.5, 0.0, 0.5]))


class Array:
    """A stranger's array: DLPack and nothing else."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **kwargs):
        return self.tensor.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def test_dlpack_without_a_copy(monkeypatch):
    package = types.ModuleType("strangers")
    package.from_dlpack = lambda t: Array(torch.from_dlpack(t))
    monkeypatch.setitem(sys.modules, "strangers", package)
    monkeypatch.setattr(Array, "__module__", "strangers.arrays")
    x = torch.randn(3, 4)
    ours = fastops.softmax(Array(x))
    assert isinstance(ours, Array)
    torch.testing.assert_close(ours.tensor, torch.softmax(x, -1))
    assert fastops.softmax(Array(x), out=Array(x)).tensor is x
    torch.testing.assert_close(x, ours.tensor)


def test_array_api_namespace_answers_in_kind():
    class Namespaced(Array):
        def __array_namespace__(self):
            return types.SimpleNamespace(from_dlpack=lambda t: Namespaced(torch.from_dlpack(t)))

    assert isinstance(fastops.logsumexp(Namespaced(torch.randn(3)), 0), Namespaced)


def test_dlpack_without_a_way_back():
    with pytest.raises(TypeError, match="expected an array whose package has from_dlpack"):
        fastops.softmax(Array(torch.zeros(3)))
