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


def work(case: Case) -> Work | None:
    if case.suite in ("overhead", "cache"):
        return None  # not about DRAM
    elements = case.rows * case.n
    tensors, exponentials = NEEDS[case.op]
    mask = elements if case.variant == "mask" else 0
    return Work(
        tensors * elements * DTYPES[case.dtype].itemsize + mask, {}, exponentials * elements
    )
