"""What the family must reach, as numbers: `python -m bench --check` holds them.

On a CPU they are for AVX-512, tensors of 64 MB and outputs allocated beforehand.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.bars import Bar, error_ratio, extra_us, of_ceiling, speedup, times_copy
from ..core.case import PEER, Result


def _in(
    *suites: str,
    op: str = "softmax",
    dtypes: tuple[str, ...] = (),
    threads: int | None = None,
    least_n: int = 0,
    most_n: int = 1 << 62,
    device: str = "cpu",
) -> Callable[[Result], bool]:
    def where(result: Result) -> bool:
        case = result.case
        return (
            case.device == device
            and case.suite in suites
            and case.op == op
            and (not dtypes or case.dtype in dtypes)
            and threads in (None, case.threads)
            and least_n <= case.n <= most_n
        )

    return where


HALF = ("bf16", "fp16")
FP32 = ("fp32",)
ROW_16M = {"dtypes": FP32, "threads": 2, "least_n": 1 << 24}


def _cuda_bars(op: str, *peers: str) -> list[Bar]:
    cuda = {"op": op, "device": "cuda", "dtypes": ("bf16", "fp32")}
    return [
        Bar(f"CUDA {op}, N >= 1024, share of copy bandwidth", _in("sweep", least_n=1024, **cuda),
            of_ceiling, each=0.92),
        Bar(f"CUDA {op}, N 256 to 1023, share of copy bandwidth",
            _in("sweep", least_n=256, most_n=1023, **cuda), of_ceiling, each=0.85),
        *(Bar(f"CUDA {op} against {peer}", _in("sweep", **cuda), speedup(peer), each=1.0)
          for peer in peers),
    ]  # fmt: skip


BARS = [
    Bar("fp32 softmax, N 64 to 16M, 1 thread", _in("sweep", dtypes=FP32, threads=1),
        speedup(), mean=2.1, each=1.6),
    Bar("fp32 softmax, 2 threads", _in("sweep", dtypes=FP32, threads=2), speedup(), mean=1.5),
    Bar("  over a streaming copy, N >= 1024",
        _in("sweep", dtypes=FP32, threads=2, least_n=1024), times_copy, each=1.3, at_most=True),
    Bar("bf16 and fp16 softmax", _in("sweep", dtypes=HALF), speedup(), mean=2.8, each=2.0),
    Bar("a dim that is not the last", _in("dims"), speedup(), each=2.0),
    Bar("one row of 16M, 2 threads", _in("sweep", **ROW_16M), speedup(), each=1.8),
    Bar("  its error over torch's", _in("sweep", **ROW_16M), error_ratio, each=1.0, at_most=True),
    Bar("backward, every N", _in("sweep", op="softmax_backward", threads=1), speedup(), each=1.15),
    Bar("backward, 4K to 32K",
        _in("sweep", op="softmax_backward", threads=1, least_n=1 << 12, most_n=1 << 15),
        speedup(), each=1.4),
    Bar("log_softmax", _in("sweep", op="log_softmax", threads=1), speedup(), each=1.5),
    Bar("masked softmax",
        _in("sweep", op="masked_softmax", threads=1), speedup(), each=3.0),
    Bar("tensors in cache, 64 KB to 4 MB", _in("cache"), speedup(), each=1.2),
    Bar("per-call overhead beyond torch's", _in("overhead"), extra_us, each=3.0, at_most=True,
        unit=" µs"),
    *_cuda_bars("softmax", PEER, "compile", "triton"),
    *_cuda_bars("softmax_backward", PEER, "compile"),
]  # fmt: skip
