"""What running a kernel on the host costs: `python -m tests.simt.cost`.

Best of several; one thread. The floor of a launch is its switches and its checked accesses.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable

import numpy as np
import torch

from fastops._lib import _native
from tests.simt.simt_lib import library_path

# What docs/simt.md promises: milliseconds of a 256^3 product, nanoseconds of a switch.
GEMM_MS, SWITCH_NS = 100, 40


def best_ms(call: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:]) * 1e3


def gemm_ms(planted: str) -> float:
    a, b = (np.random.randn(256, 256).astype(np.float16) for _ in range(2))
    out = np.empty((256, 256), np.float32)
    ms = best_ms(lambda: _native.simt_call(planted, "gemm", {"a": a, "b": b}, {"out": out}))
    assert np.abs(out - a.astype(np.float64) @ b.T.astype(np.float64)).max() < 1e-3
    return ms


def main() -> None:
    path = str(library_path("simt_planted"))
    planted = ctypes.CDLL(path)
    rounds = 20000
    switch = best_ms(lambda: planted.planted_switch(rounds)) * 1e6 / (32 * rounds)
    print(f"switch, __syncwarp included    {switch:6.1f} ns  (goal {SWITCH_NS})")
    gemm = gemm_ms(path)
    print(f"gemm 256^3, 64x64x32 tiles     {gemm:6.1f} ms  (goal {GEMM_MS})")
    planted.simt_count(1)
    print(f"the same, counted              {gemm_ms(path):6.1f} ms")
    planted.simt_count(0)
    planted.simt_take_counts.restype = ctypes.c_char_p
    (launch, *_) = json.loads(planted.simt_take_counts())
    conflicts = launch["wavefronts"] / launch["ideal_wavefronts"]
    print(f"  its shared-memory wavefronts {conflicts:6.2f} x the least")

    torch.ops.load_library(str(library_path("libfastops_simt")))
    ops = torch.ops.fastops
    for name, shape, dim in [
        ("block_row 64 x 4096", (64, 4096), 1),
        ("rows 1024 x 256", (1024, 256), 1),
        ("column 256 x 1024", (256, 1024), 0),
        ("split 1 x 262144", (1, 262144), 1),
    ]:
        for dtype in (torch.float32, torch.float16):
            x = torch.randn(shape).to(dtype)
            y = ops.softmax(x, [dim])
            forward = best_ms(lambda x=x, dim=dim: ops.softmax(x, [dim]), 3)
            backward = best_ms(lambda x=x, y=y, dim=dim: ops.softmax_backward(x, y, [dim]), 3)
            label = f"{name} {str(dtype).removeprefix('torch.')}"
            print(f"{label:30s} {forward:6.1f} ms forward, {backward:6.1f} ms backward")


if __name__ == "__main__":
    main()
