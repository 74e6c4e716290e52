"""What the relatives cannot do without. entmax with an alpha of its own takes a logarithm and an
exponential for each element of the support; here all of them count."""

from __future__ import annotations

from ..core.case import DTYPES, Case
from ..core.roofline import Work

# Tensors of the input's size that move, special functions an element.
NEEDS = {
    "softmax_topk": (1, 1),
    "sparsemax": (2, 0),
    "entmax15": (2, 0),
    "entmax": (2, 2),
    "sparsemax_backward": (3, 0),
    "entmax15_backward": (3, 1),  # a square root
    "entmax_backward": (3, 2),
}


def work(case: Case) -> Work:
    elements = case.rows * case.n
    tensors, special = NEEDS[case.op]
    return Work(tensors * elements * DTYPES[case.dtype].itemsize, {}, special * elements)
