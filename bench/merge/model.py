"""What merging cannot do without: tokens in and rows out; for a match every similarity on tensor
cores, in fp32 as three products of fp16."""

from __future__ import annotations

from ..core.case import DTYPES, Case
from ..core.roofline import Work
from .cases import MODELS

# Tokens read, rows written, tokens written, merged rows read: how often each moves.
PASSES = {
    "match_merge": (1, 1, 0, 0),
    "merge": (1, 1, 0, 0),
    "merge_out": (1, 1, 0, 0),
    "merge_unmerge_grad": (2, 2, 2, 2),
    "merge_there_and_back": (1, 1, 1, 1),
}


def work(case: Case) -> Work:
    model = MODELS[case.variant]
    batch, n, channels = case.shape
    out = n - model.r
    read, written, put_back, reread = PASSES[case.op]
    size = DTYPES[case.dtype].itemsize
    moved = batch * channels * size * ((read + put_back) * n + (written + reread) * out)
    if case.op not in ("match_merge", "merge_there_and_back"):
        return Work(moved)
    destinations = n // 4 if model.suite == "diffusion" else n // 2
    if model.suite == "vit":
        moved += batch * n * model.metric * size
    similarities = batch * (n - destinations) * destinations
    products = 3 if case.dtype == "fp32" else 1
    return Work(moved, {"tensor16": 2.0 * products * similarities * model.metric})
