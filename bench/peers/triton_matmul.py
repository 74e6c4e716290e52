"""x · Wᵀ in Triton the way tutorials teach it: tiles in groups that share the weight, autotuned."""

from __future__ import annotations

import torch

from .triton_softmax import triton, why_missing

__all__ = ["linear", "why_missing"]

if triton is not None:
    import triton.language as tl

    @triton.autotune(
        configs=[
            triton.Config(
                {"ROWS": rows, "COLS": cols, "DEPTH": depth}, num_stages=stages, num_warps=warps
            )
            for rows, cols, depth, stages, warps in (
                (128, 256, 64, 3, 8),
                (128, 128, 64, 4, 4),
                (128, 64, 64, 4, 4),
                (64, 128, 64, 4, 4),
                (64, 64, 64, 4, 4),
                (16, 64, 128, 4, 4),
                (16, 32, 256, 4, 2),
            )
        ],
        key=["m", "n", "k"],
    )
    @triton.jit
    def _kernel(
        x, w, y, m, n, k,
        ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    ):  # fmt: skip
        tiles_m, tiles_n = tl.cdiv(m, ROWS), tl.cdiv(n, COLS)
        group = tl.program_id(0) // (GROUP * tiles_n)
        first = group * GROUP
        height = tl.minimum(tiles_m - first, GROUP)
        inside = tl.program_id(0) % (GROUP * tiles_n)
        row = ((first + inside % height) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        column = ((inside // height) * COLS + tl.arange(0, COLS)).to(tl.int64)
        total = tl.zeros((ROWS, COLS), dtype=tl.float32)
        for begin in range(0, k, DEPTH):
            depth = begin + tl.arange(0, DEPTH)
            a = tl.load(
                x + row[:, None] * k + depth[None, :],
                mask=(row[:, None] < m) & (depth[None, :] < k),
                other=0.0,
            )
            b = tl.load(
                w + column[None, :] * k + depth[:, None],
                mask=(column[None, :] < n) & (depth[:, None] < k),
                other=0.0,
            )
            total = tl.dot(a, b, total)
        tl.store(
            y + row[:, None] * n + column[None, :],
            total.to(y.dtype.element_ty),
            mask=(row[:, None] < m) & (column[None, :] < n),
        )


def linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x [M, K] times w [N, K] transposed, both contiguous."""
    (m, k), n = x.shape, w.shape[0]
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)

    def grid(meta: dict) -> tuple[int]:
        return (triton.cdiv(m, meta["ROWS"]) * triton.cdiv(n, meta["COLS"]),)

    _kernel[grid](x, w, y, m, n, k, GROUP=8)
    return y
