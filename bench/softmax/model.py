"""What a softmax cannot do without: each tensor once, one exponential an element."""

from __future__ import annotations

from ..core.case import DTYPES, Case
from ..core.roofline import Work

# Tensors of the input's size that move, exponentials an element.
NEEDS = {
    "softmax": (2, 1),
    "log_softmax": (2, 1),
    "logsumexp": (1, 1),
    "masked_softmax": (2, 1),
    "softmax_backward": (3, 0),
    "log_softmax_backward": (3, 1),
}
# The longest slice of a row that lets two blocks share an SM, and rings whose slots are a power of
# two bytes long (softmax/cuda/heuristics.h).
DYNAMIC_SHARED = {
    "stream_kernel<*": 112 * 1024,
    "ring_kernel<*, 1, false>": 32 * 1024,
    "ring_kernel<*, 4, false>": 32 * 1024,
    "ring_kernel<*, 8, false>": 64 * 1024,
    "ring_kernel<*, 4, true>": 48 * 1024,
}


def work(case: Case) -> Work | None:
    if case.suite in ("overhead", "cache"):
        return None  # not about DRAM
    elements = case.rows * case.n
    tensors, exponentials = NEEDS[case.op]
    mask = elements if case.variant == "mask" else 0
    return Work(
        tensors * elements * DTYPES[case.dtype].itemsize + mask, {}, exponentials * elements
    )
