"""The bytes that shipped kernels move, counted, against what they state: csrc/*/cuda, docs/cuda.md.
Where a kernel also reads a plan or writes partial results, these are allowed for by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import fastops
from tests.nm.samples import randn, sparse
from tests.simt.emulator import counted

HALF = torch.float16


def bytes_moved(call: Callable[[], object]) -> dict[str, int]:
    """Kernel -> bytes of global memory its launches read and wrote."""
    moved: dict[str, int] = {}
    for launch in counted(call):
        both = launch["read_bytes"] + launch["written_bytes"]
        moved[launch["kernel"]] = moved.get(launch["kernel"], 0) + both
    return moved


# Kernel -> shape, dim, bytes per 16-bit element forward and backward, of partial results per row.
SOFTMAX = {
    "softmax rows": ((8, 1024), 1, 4, 6, 0),
    "softmax ring": ((400, 1024), 1, 4, 6, 0),
    "softmax block_row": ((2, 12288), 1, 4, 6, 0),
    "softmax stream": ((2, 24576), 1, 4, 6, 0),
    "softmax cluster": ((2, 131072), 1, 4, 6, 0),
    "softmax split": ((1, 262144), 1, 6, 10, 4096),
    "softmax column": ((256, 64), 0, 6, 10, 0),
}
HOPPER = ("softmax ring", "softmax cluster")


@pytest.mark.parametrize("kernel", SOFTMAX)
def test_softmax(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTOPS_SM90", str(int(kernel in HOPPER)))
    shape, dim, forward, backward, partial = SOFTMAX[kernel]
    x = randn(*shape, dtype=HALF)
    y = torch.empty_like(x)

    def run_forward() -> None:
        y.copy_(torch.ops.fastops.softmax(x, [dim]))

    for bytes_each, call in [
        (forward, run_forward),
        (backward, lambda: torch.ops.fastops.softmax_backward(x, y, [dim])),
    ]:
        moved = bytes_moved(call)
        assert all(name.startswith(kernel) for name in moved)
        floor = bytes_each * x.numel()
        assert floor <= sum(moved.values()) <= floor + partial * shape[0]


def test_sparse_stream() -> None:
    """A block of 64 by 64 weights is 4.5 KB, read once for up to 16 rows; x once per 64 outputs."""
    rows, out, features = 16, 128, 512
    _, weight = sparse(out, features, "2:4", HALF)
    x = randn(rows, features, dtype=HALF)
    fastops.nm_linear(x, weight)  # packs the weight
    moved = bytes_moved(lambda: fastops.nm_linear(x, weight))
    blocks = out // 64 * features // 64
    assert moved["nm sparse_stream"] == blocks * 4608 + out // 64 * x.numel() * 2 + rows * out * 2


def test_sparse_matmul() -> None:
    """128 outputs by 128 rows: the weight once per row tile and warp, x once per 128 outputs."""
    rows, out, features = 128, 128, 256
    _, weight = sparse(out, features, "2:4", HALF)
    x = randn(rows, features, dtype=HALF)
    fastops.nm_linear(x, weight)
    moved = bytes_moved(lambda: fastops.nm_linear(x, weight))
    warps_of_a_weight = 2
    weights = out // 64 * features // 64 * 4608 * warps_of_a_weight
    assert moved["nm sparse_matmul"] == weights + x.numel() * 2 + rows * out * 2


def test_merge_rows() -> None:
    """x once, y once; the plan and the sizes per row."""
    x = randn(2, 64, 256, dtype=HALF)
    plan = fastops.match_tokens(x, r=16)
    moved = bytes_moved(lambda: fastops.merge_tokens(x, plan))
    rows = 2 * 48
    floor = x.numel() * 2 + rows * 256 * 2
    assert floor <= moved["merge rows"] <= 1.1 * floor
    y = fastops.merge_tokens(x, plan)
    y = y[0] if isinstance(y, tuple) else y
    moved = bytes_moved(lambda: fastops.unmerge_tokens(y, plan))
    floor = 2 * x.numel() * 2
    assert floor <= moved["unmerge rows"] <= 1.1 * floor
