"""What this machine can do at best: the roof every result is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .pool import Pool
from .timing import Effort, measure

COPY_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
MATMUL_N = 8192


@dataclass
class Ceilings:
    """Bytes per second (read + written) by thread count (0 on CUDA); FLOP per second by dtype."""

    copy: dict[int, float]
    matmul: dict[str, float] = field(default_factory=dict)
    how: str = ""


def copier() -> tuple[Callable[[torch.Tensor, torch.Tensor, int], object], str]:
    """The best plain copy at hand on the CPU, and its name."""
    try:
        from fastops._lib import _native
    except ImportError:
        return lambda dst, src, threads: dst.copy_(src), "torch copy_ (no fastops._native)"

    def copy(dst: torch.Tensor, src: torch.Tensor, threads: int) -> None:
        _native.stream_copy(as_bytes(dst), as_bytes(src), threads)

    return copy, "copy with non-temporal stores"


def as_bytes(tensor: torch.Tensor) -> object:
    """A contiguous tensor of any dtype as a NumPy array of its bytes."""
    return tensor.view(-1).view(torch.uint8).numpy()


def measure_ceilings(device: str, threads: list[int], pool: Pool, effort: Effort) -> Ceilings:
    numel = COPY_BYTES[device] // 4
    pairs = [
        (pool.empty((numel,), torch.float32, i), pool.scores((numel,), torch.float32, i))
        for i in range(2)
    ]
    if device == "cuda":
        calls = {"copy": [lambda d=dst, s=src: d.copy_(s) for dst, src in pairs]}
        seconds = measure(calls, device, effort, cold=True)["copy"].median
        rates = {dtype: _matmul_rate(getattr(torch, dtype), effort) for dtype in _MATMUL_DTYPES}
        return Ceilings({0: 2 * COPY_BYTES[device] / seconds}, rates, "device-to-device copy")
    copy, how = copier()
    rates = {}
    for count in threads:
        torch.set_num_threads(count)
        calls = {"copy": [lambda d=d, s=s, t=count: copy(d, s, t) for d, s in pairs]}
        rates[count] = 2 * COPY_BYTES[device] / measure(calls, device, effort, True)["copy"].median
    return Ceilings(rates, how=how)


_MATMUL_DTYPES = ("bfloat16", "float16")


def _matmul_rate(dtype: torch.dtype, effort: Effort) -> float:
    a, b, c = (torch.randn(MATMUL_N, MATMUL_N, dtype=dtype, device="cuda") for _ in range(3))
    calls = {"matmul": [lambda: torch.mm(a, b, out=c)]}
    return 2 * MATMUL_N**3 / measure(calls, "cuda", effort, cold=False)["matmul"].median
