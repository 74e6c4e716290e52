"""What the relatives must reach: the same on a CPU with AVX-512 and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

from ..core.bars import Bar, speedup
from ..core.case import Result


def _of(device: str, *ops: str, suite: str = "sparse") -> Callable[[Result], bool]:
    return lambda r: r.case.device == device and r.case.suite == suite and r.case.op in ops


def over_softmax(result: Result) -> float | None:
    """Our time over that of fastops.softmax of the same tensor."""
    softmax = result.speedup("softmax")
    return 1 / softmax if softmax else None


FORWARD = ("sparsemax", "entmax15", "entmax")
BACKWARD = tuple(f"{op}_backward" for op in FORWARD)


def _bars(device: str, prefix: str = "") -> list[Bar]:
    return [
        Bar(f"{prefix}softmax_topk against softmax and topk",
            _of(device, "softmax_topk", suite="topk"), speedup(), each=8.0),
        Bar(f"{prefix}MoE routing, 16384 x 256, k = 8", _of(device, "softmax_topk", suite="moe"),
            speedup(), each=8.0),
        Bar(f"{prefix}sparsemax, entmax15 against the entmax package", _of(device, *FORWARD[:2]),
            speedup(), each=10.0),
        Bar(f"{prefix}entmax(1.3) against the entmax package", _of(device, "entmax"), speedup(),
            each=6.0),
        Bar(f"{prefix}sparse maps over fastops.softmax", _of(device, *FORWARD), over_softmax,
            each=3.0, at_most=True),
        Bar(f"{prefix}their backward", _of(device, *BACKWARD), speedup(), each=5.0),
    ]  # fmt: skip


BARS = [*_bars("cpu"), *_bars("cuda", "CUDA ")]
