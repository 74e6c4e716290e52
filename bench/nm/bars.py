"""What the family must reach against dense F.linear of the same dtype.

On a CPU they are for AVX-512 without matrix extensions (AMX): with those, torch's bf16 product is
several times as fast as any vector unit. Bars of a GPU are for the dense product of cuBLAS, and for
the other ways to use a 2:4 weight.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.bars import Bar, h200, speedup
from ..core.case import Result
from ..peers import semi_structured
from .cases import HUGE


def _at(
    suite: str,
    dtype: str,
    *patterns: str,
    rows: int | None = None,
    threads: int | None = None,
    shape: tuple[int, int, int] | None = None,
    device: str = "cpu",
) -> Callable[[Result], bool]:
    def where(result: Result) -> bool:
        case = result.case
        return (
            case.device == device
            and case.suite == suite
            and case.dtype == dtype
            and case.variant in patterns
            and rows in (None, case.shape[0])
            and threads in (None, case.threads)
            and shape in (None, case.shape)
        )

    return where


def _bars(suite: str, dtype: str, limits: dict[tuple[str, ...], float], **where) -> list[Bar]:
    work = ", ".join(
        ["many rows" if suite == GEMM else "decode"]
        + [f"{value} {key[: -1 if value == 1 else None]}" for key, value in where.items()]
    )
    return [
        Bar(f"{work}, {dtype}, {' and '.join(patterns)}", _at(suite, dtype, *patterns, **where),
            speedup(), each=limit)
        for patterns, limit in limits.items()
    ]  # fmt: skip


def _cuda_bars() -> list[Bar]:
    bars = []
    for shape, times, machine in zip(HUGE, (1.2, 1.25), (None, h200(hopper=True)), strict=True):
        where = _at(GEMM, "bf16", "2:4", shape=shape, device="cuda")
        name = "×".join(map(str, shape))
        bars += [
            Bar(f"CUDA {name}, bf16, 2:4", where, speedup(), each=times, machine=machine),
            Bar(f"CUDA {name}, bf16, 2:4, against cusparselt", where, speedup("cusparselt"), each=1,
                machine=machine),
        ]  # fmt: skip
    decode = _at(DECODE, "bf16", "2:4", rows=1, device="cuda")
    bars.append(Bar("CUDA decode, 1 row, bf16, 2:4", decode, speedup(), each=1.6))
    return bars + [
        Bar(f"CUDA layers of ViT and Llama, against {peer}",
            lambda r: r.case.device == "cuda" and r.case.op == "nm_linear"
            and r.case.shape not in HUGE,
            speedup(peer), each=1)
        for peer in semi_structured.KINDS
    ]  # fmt: skip


GEMM = "nm_gemm"
DECODE = "nm_decode"
QUARTER = ("1:4", "2:8")
BARS = [
    *_bars(GEMM, "fp32", {("2:4",): 1.8, QUARTER: 3.2, ("1:8",): 5.5, ("3:4", "4:8"): 0.9}),
    *_bars(GEMM, "bf16", {("2:4",): 1.4, QUARTER: 2.3, ("1:8",): 4.2, ("3:4", "4:8"): 0.9}),
    *_bars(GEMM, "fp16", {("2:4",): 7.0}),
    Bar("  over torch's fp32", _at(GEMM, "fp16", "2:4"), speedup("fp32"), each=1.7),
    *_bars(DECODE, "fp32", {("2:4",): 1.7, ("1:4",): 3.3}, rows=1),
    *_bars(DECODE, "bf16", {("2:4",): 3.0, ("1:4",): 6.0}, rows=1, threads=1),
    *_bars(DECODE, "bf16", {("2:4",): 1.6, ("1:4",): 3.0}, rows=1, threads=2),
    *_bars(DECODE, "fp32", {("2:4",): 4.0}, rows=4, threads=1),
    *_bars(DECODE, "fp32", {("2:4",): 3.0}, rows=8, threads=1),
    *_cuda_bars(),
]
