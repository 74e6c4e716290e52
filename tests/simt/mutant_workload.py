"""`python mutant_workload.py LIB`: runs the ops of an emulated library, prints its first report."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

os.environ["FASTOPS_SM90"] = "1"
torch.ops.load_library(sys.argv[1])
lib = ctypes.CDLL(sys.argv[1])
lib.simt_configure.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_ulonglong]
ops = torch.ops.fastops


def workloads() -> None:
    """Every kernel, with more rows than persistent blocks, more chunks than one, uneven ends."""
    for shape, dim in [
        ((9, 40), 1),
        ((3, 1501), 1),
        ((17, 9003), 1),  # stream: several rows a block
        ((9, 36005), 1),  # cluster
        ((1, 33001), 1),  # split
        ((70, 64), 0),  # column
        ((70, 7), 0),  # strided
    ]:
        x = torch.randn(shape)
        y = ops.softmax(x, [dim])
        ops.softmax_backward(x, y, [dim])


for order, late in [(0, 0), (1, 1), (2, 0)]:
    lib.simt_configure(order, late, 11)
    try:
        workloads()
    except RuntimeError as error:
        print(error)
        sys.exit(0 if str(error).startswith("simt: kernel") else 1)
