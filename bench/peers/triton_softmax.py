"""Softmax in Triton the way tutorials teach it: a program per row, the row in registers."""

from __future__ import annotations

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

MOST_N = 1 << 16  # beyond it the row leaves the registers and the kernel is no fair peer


def why_missing(device: str) -> str | None:
    if device != "cuda":
        return "runs on a GPU only"
    return None if triton else "Triton is not installed"


def why_not(n: int, last_dim: bool) -> str | None:
    """Why the kernel does not serve a case."""
    if not last_dim:
        return "the tutorial kernel knows only the last dim"
    return f"the tutorial kernel stops at N = {MOST_N}" if n > MOST_N else None


if triton is not None:

    @triton.jit
    def _kernel(x, out, n, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        columns = tl.arange(0, BLOCK)
        valid = columns < n
        score = tl.load(x + row * n + columns, mask=valid, other=-float("inf")).to(tl.float32)
        weight = tl.exp(score - tl.max(score, 0))
        tl.store(out + row * n + columns, weight / tl.sum(weight, 0), mask=valid)


def softmax(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dim of a contiguous tensor."""
    n = x.shape[-1]
    block = triton.next_power_of_2(n)
    warps = min(max(block // 512, 1), 32)
    _kernel[(x.numel() // n,)](x, out, n, BLOCK=block, num_warps=warps)
    return out
