"""What attention cannot do without: q, k, v and out once; the products of the blocks kept, and an
exponential for each of their scores."""

from __future__ import annotations

from ..core.case import DTYPES, Case
from ..core.roofline import Work
from .cases import MASKS

# Tiles of q and of k and v, blocks of 128 queries (attention/cuda/launch_*.cuh).
DYNAMIC_SHARED = {
    "forward_mma_kernel<*, 64>": 32 * 1024,
    "forward_mma_kernel<*, 128>": 48 * 1024,
    "forward_mma_kernel<*, 256>": 64 * 1024,
    "backward_mma_kernel<*, 64, *>": 48 * 1024,
    "backward_mma_kernel<*, 128, true>": 48 * 1024,
    "backward_mma_kernel<*, 128, false>": 64 * 1024,
    "forward_hopper_kernel<*, 64, 1>": 73 * 1024,
    "forward_hopper_kernel<*, 64, 2>": 81 * 1024,
    "forward_hopper_kernel<*, 96, 1>": 81 * 1024,
    "forward_hopper_kernel<*, 96, 2>": 161 * 1024,
    "forward_hopper_kernel<*, 128, 1>": 81 * 1024,
    "forward_hopper_kernel<*, 128, 2>": 161 * 1024,
    "forward_hopper_kernel<*, 192, 1>": 121 * 1024,
    "forward_hopper_kernel<*, 192, 2>": 145 * 1024,
    "forward_hopper_kernel<*, 256, 1>": 161 * 1024,
    "forward_hopper_kernel<*, 256, 2>": 193 * 1024,
    "backward_hopper_kernel<*, 64, *>": 100 * 1024,
    "backward_hopper_kernel<*, 128, *>": 196 * 1024,
    "forward_plain_kernel<*, 64>": 22 * 1024,
    "forward_plain_kernel<*, 256>": 71 * 1024,
    "backward_plain_kernel<*, 64, *>": 43 * 1024,
    "backward_plain_kernel<*, 256, *>": 104 * 1024,
}
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
