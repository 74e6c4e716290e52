"""What running a kernel on the host costs: `python -m tests.simt.cost`.

Best of several; one thread. The floor of a launch is its switches and its checked accesses.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import torch

from tests.simt.simt_lib import library_path


def best_ms(call: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:]) * 1e3


def main() -> None:
    planted = ctypes.CDLL(str(library_path("simt_planted")))
    rounds = 20000
    ms = best_ms(lambda: planted.planted_switch(rounds))
    print(f"switch, __syncwarp included    {ms * 1e6 / (32 * rounds):6.1f} ns")

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
