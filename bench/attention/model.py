"""What attention cannot do without: q, k, v and out once; the products of the blocks kept, and an
exponential for each of their scores."""

from __future__ import annotations

from ..core.case import DTYPES, Case
from ..core.roofline import Work
from .cases import MASKS

# Matrix products: q kT and p v; the gradient forms q kT again and four more.
PRODUCTS = {"attention": 2, "attention_backward": 5, "attention_grad": 7}
# How often q, k, v, out and their gradients move.
TENSORS = {"attention": 4, "attention_backward": 8, "attention_grad": 11}


def work(case: Case) -> Work:
    batch, heads, length, channels = case.shape
    scores = batch * heads * length * length * MASKS[case.variant].share(length)
    moved = TENSORS[case.op] * batch * heads * length * channels * DTYPES[case.dtype].itemsize
    unit = "fp32" if case.dtype == "fp32" else "tensor16"
    grad = case.op == "attention_grad"
    flops = 2.0 * PRODUCTS[case.op] * scores * channels
    return Work(moved, {unit: flops}, special=scores * (1 + grad))
