"""libfastops_simt in this process: which kernels were launched, and how threads are ordered."""

from __future__ import annotations

import ctypes
import functools
import json
from collections.abc import Callable

from tests.simt.simt_lib import library_path

ORDERS = {"ascending": 0, "descending": 1, "random": 2}


@functools.cache
def emulator() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path("libfastops_simt")))
    library.simt_configure.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_ulonglong]
    library.simt_take_launches.restype = ctypes.c_char_p
    library.simt_take_counts.restype = ctypes.c_char_p
    return library


def launches() -> list[str]:
    """Names of the kernels launched since the last call, in order."""
    return [name for name in emulator().simt_take_launches().decode().split("\n") if name]


def launched() -> set[str]:
    return set(launches())


def counted(call: Callable[[], object]) -> list[dict]:
    """What `call` launches, in order: kernel, blocks, and what they ask of memory."""
    emulator().simt_take_counts()
    emulator().simt_count(1)
    try:
        call()
    finally:
        emulator().simt_count(0)
    return json.loads(emulator().simt_take_counts())
