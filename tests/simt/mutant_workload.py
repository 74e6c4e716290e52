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


def nm_workloads() -> None:
    """Products with 2:4 weights: more tiles than the ring has stages, more splits than one."""
    stored, stored_transposed, sparse_tiles = 0, 4, 5
    for dtype, features in ((torch.float32, 72), (torch.float16, 456), (torch.float16, 1032)):
        out = 70
        values = torch.randn(out, features // 2).to(dtype)
        indices = torch.full((out, features // 4 * 4 // 8), 0x44, dtype=torch.uint8)
        weight = (None, out, features, 2, 4)
        for rows in (3, 70, 140):
            x, grad = torch.randn(rows, features).to(dtype), torch.randn(rows, out).to(dtype)
            if dtype == torch.float32:
                ops._nm_matmul(x, values, indices, *weight, stored, 0)
                ops._nm_matmul(grad, values, indices, *weight, stored_transposed, 0)
                ops.nm_linear_dw(grad, x, indices, 2, 4)
            else:
                structure, source = ops._nm_pack(indices, 2, 4, features, sparse_tiles)
                packed = ops._nm_gather(values, source)
                ops._nm_matmul(x, packed, structure, *weight, sparse_tiles, 0)


for order, late in [(0, 0), (1, 1), (2, 0)]:
    lib.simt_configure(order, late, 11)
    try:
        workloads()
        nm_workloads()
    except RuntimeError as error:
        print(error)
        sys.exit(0 if str(error).startswith("simt: kernel") else 1)
