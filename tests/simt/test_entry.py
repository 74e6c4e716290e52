"""Emulated kernels on NumPy arrays: fastops._native.simt_call, and what the counters say."""

from __future__ import annotations

import ctypes
import json

import numpy as np
import pytest

from tests.simt.simt_lib import library_path

try:
    PATH = str(library_path("simt_planted"))
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)
from fastops._lib import _native

LIB = ctypes.CDLL(PATH)
LIB.simt_take_counts.restype = ctypes.c_char_p
LIB.simt_configure.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_ulonglong]


def aligned(shape: tuple[int, int], dtype: type) -> np.ndarray:
    """An empty array at a multiple of 256 bytes, as a GPU's allocator gives."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    storage = np.empty(size + 256, np.uint8)
    start = -storage.ctypes.data % 256
    return storage[start : start + size].view(dtype).reshape(shape)


def operands(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    a, b, out = (
        aligned((n, n), np.float16),
        aligned((n, n), np.float16),
        aligned((n, n), np.float32),
    )
    a[:], b[:] = rng.integers(-4, 5, (2, n, n))
    out[:] = np.nan
    return a, b, out


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("entry", ["gemm", "gemm_unswizzled"])
def test_product(entry: str, order: int) -> None:
    LIB.simt_configure(order, order % 2, 3)
    a, b, out = operands(128)
    _native.simt_call(PATH, entry, {"a": a, "b": b}, {"out": out})
    assert np.array_equal(out, a.astype(np.float32) @ b.T.astype(np.float32))


def counted(entry: str, n: int) -> dict[str, object]:
    a, b, out = operands(n)
    LIB.simt_take_counts()
    LIB.simt_count(1)
    try:
        _native.simt_call(PATH, entry, {"a": a, "b": b}, {"out": out})
    finally:
        LIB.simt_count(0)
    (launch,) = json.loads(LIB.simt_take_counts())
    return launch


def test_counts_of_a_swizzled_tile() -> None:
    n, tiles = 128, 4
    launch = counted("gemm", n)
    assert launch["kernel"] == "gemm"
    assert launch["wavefronts"] == launch["ideal_wavefronts"]
    assert launch["sectors"] == launch["ideal_sectors"]
    # Each of the tiles reads 64 rows of either operand.
    assert launch["read_bytes"] == tiles * 2 * 64 * n * 2
    assert launch["written_bytes"] == n * n * 4
    assert any("gemm.cu" in line["at"] for line in launch["lines"])


def test_counts_see_bank_conflicts() -> None:
    launch = counted("gemm_unswizzled", 64)
    lines = [line for line in launch["lines"] if "ldmatrix" in line["at"]]
    assert lines
    # Rows of 64 bytes: the eight of a matrix fall on a quarter of the banks.
    assert all(line["wavefronts"] == 4 * line["ideal_wavefronts"] for line in lines)


def test_a_report_is_an_exception() -> None:
    a, b, out = operands(64)
    with pytest.raises(RuntimeError, match=r"out-of-bounds: block.* reads 16 bytes of b \+ "):
        _native.simt_call(PATH, "gemm", {"a": a, "b": b[:60]}, {"out": out})


def test_errors_of_the_call() -> None:
    a, b, out = operands(64)
    with pytest.raises(RuntimeError, match="no entry named nothing; there are: gemm"):
        _native.simt_call(PATH, "nothing", {}, {})
    with pytest.raises(RuntimeError, match="needs an array named out"):
        _native.simt_call(PATH, "gemm", {"a": a, "b": b}, {})
    with pytest.raises(ValueError, match="strides"):
        _native.simt_call(PATH, "gemm", {"a": a[::-1], "b": b}, {"out": out})
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _native.simt_call(PATH, "gemm", {"a": a, "b": b}, {"out": out})
