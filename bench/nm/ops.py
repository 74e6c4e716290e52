"""The product as a user calls it, and its peers: dense in the same dtype, fp32 beside fp16, on a
GPU the other ways to use a 2:4 weight, and Triton's dense product. All allocate their output; the
weight is packed before, activations are packed inside the time."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
import torch.nn.functional as F

import fastops

from ..core.case import DTYPES, OURS, PEER, Accuracy, Case, Workload
from ..core.env import cache_bytes
from ..core.pool import Pool
from ..core.timing import Call
from ..peers import semi_structured, triton_matmul

OPS = {"nm_linear": fastops.nm_linear}

# Weights of a decode case take turns, so that none is in a cache when its turn comes.
ROTATED_BYTES = 256 << 20
MOST_SETS = 8
CHECKED_ROWS = 8


@lru_cache(maxsize=1)
def _weights(shape, pattern: str, dtype: torch.dtype, device: str, sets: int):
    """(pruned dense, sparse) weights; kept for the next thread count."""
    pairs = []
    for _ in range(sets):
        w = fastops.nm_prune(torch.randn(shape, device=device).to(dtype), pattern)
        pairs.append((w, fastops.nm_compress(w, pattern)))
    return pairs


def prepare(case: Case, pool: Pool, peers: tuple[str, ...]) -> Workload:
    """Buffers and calls of a case."""
    rows, features, out = case.shape
    dtype = DTYPES[case.dtype]
    dense_bytes = features * out * dtype.itemsize
    beyond_cache = max(ROTATED_BYTES, cache_bytes(case.device))
    sets = 1 if case.warm else max(2, min(MOST_SETS, -(-beyond_cache // dense_bytes)))
    weights = _weights((out, features), case.variant, dtype, case.device, sets)
    x = pool.scores((rows, features), dtype)
    calls = {
        OURS: [partial(fastops.nm_linear, x, weight) for _, weight in weights],
        PEER: [partial(F.linear, x, w) for w, _ in weights],
    }
    if "fp32" in peers and dtype == torch.float16 and case.warm:
        calls["fp32"] = [partial(F.linear, x.float(), weights[0][0].float())]
    notes = _gpu_peers(calls, peers, x, weights, case) if case.device == "cuda" else {}
    for call in calls[OURS]:  # packs its weight
        call()
    weight = weights[0][1]
    sparse_bytes = weight.values.numel() * dtype.itemsize + weight.indices.numel()
    traffic = sparse_bytes + rows * (features + out) * dtype.itemsize
    return Workload(calls, traffic, partial(_accuracy, x, *weights[0]), notes)


def _gpu_peers(
    calls: dict[str, list[Call]], peers: tuple[str, ...], x: torch.Tensor, weights: list, case: Case
) -> dict[str, str]:
    """Adds what serves the pattern and the dtype; why one that was asked for cannot be made."""
    notes = {}
    n, m = map(int, case.variant.split(":"))
    if "triton" in peers and x.dtype != torch.float32:
        calls["triton"] = [partial(triton_matmul.linear, x, w) for w, _ in weights]
    for peer in semi_structured.KINDS:
        if peer in peers and semi_structured.serves(n, m, x.dtype):
            try:
                calls[peer] = [semi_structured.linear(peer, x, w) for w, _ in weights]
            except RuntimeError as error:
                notes[peer] = f"failed: {str(error).splitlines()[0]}"
    return notes


def _accuracy(x: torch.Tensor, w: torch.Tensor, weight: fastops.NMWeight) -> Accuracy:
    """Errors over some rows, the last among them."""
    picks = torch.linspace(0, x.shape[0] - 1, min(CHECKED_ROWS, x.shape[0])).long()
    exact = F.linear(x[picks].double(), w.double())

    def error(y: torch.Tensor) -> float:
        off = (y[picks].double() - exact).abs()
        return (off.amax(-1) / exact.abs().amax(-1)).max().item()

    rounding = torch.finfo(x.dtype).eps / 2
    return Accuracy(error(fastops.nm_linear(x, weight)), error(F.linear(x, w)), rounding)
