"""What the relatives must reach on a CPU with AVX-512; the CUDA kernels have no bars yet."""

from __future__ import annotations

from collections.abc import Callable

from ..core.bars import Bar, speedup
from ..core.case import Result


def _of(*ops: str, suite: str = "sparse") -> Callable[[Result], bool]:
    return lambda r: r.case.device == "cpu" and r.case.suite == suite and r.case.op in ops


def over_softmax(result: Result) -> float | None:
    """Our time over that of fastops.softmax of the same tensor."""
    softmax = result.speedup("softmax")
    return 1 / softmax if softmax else None


FORWARD = ("sparsemax", "entmax15", "entmax")
BACKWARD = tuple(f"{op}_backward" for op in FORWARD)
BARS = [
    Bar("softmax_topk against softmax and topk", _of("softmax_topk", suite="topk"), speedup(),
        each=8.0),
    Bar("MoE routing, 16384 x 256, k = 8", _of("softmax_topk", suite="moe"), speedup(), each=8.0),
    Bar("sparsemax, entmax15 against the entmax package", _of(*FORWARD[:2]), speedup(), each=10.0),
    Bar("entmax(1.3) against the entmax package", _of("entmax"), speedup(), each=6.0),
    Bar("sparse maps over fastops.softmax", _of(*FORWARD), over_softmax, each=3.0, at_most=True),
    Bar("their backward", _of(*BACKWARD), speedup(), each=5.0),
]  # fmt: skip
