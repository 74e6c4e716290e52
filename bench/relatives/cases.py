"""Which shapes each suite measures. The variant of a softmax_topk case is its k."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.case import DTYPES, Case
from ..core.select import Density, Selection
from ..peers import entmax_package

SUITES = {
    "topk": "softmax with top-k: k of 1, 8 and 64 over rows of 256 to 128256",
    "moe": "the router of a mixture of experts: 16384 tokens, 256 experts, 8 chosen",
    "sparse": "sparsemax and entmax, forward and backward, rows of 64 to 128256",
}
LENGTHS = (256, 4096, 32000, 128256)
SPARSE = ("sparsemax", "entmax15", "entmax")
SORTED_BYTES = 16 << 20  # the peers of sparse maps take seconds for more


def cases(selection: Selection) -> Iterator[Case]:
    """Every case of the selection; sparse maps only where their one peer is installed: bisection in
    plain PyTorch would flatter us a thousandfold."""
    sparse = () if entmax_package.why_missing() else _sparse(selection)
    for case in (*_topk(selection), *sparse):
        if selection.wants(case.op, case.suite):
            yield case


def _rows(s: Selection, dtype: str, n: int, most: int = 1 << 62) -> tuple[int, int]:
    size = min(s.tensor_bytes, most) if s.device == "cpu" else s.tensor_bytes
    return max(1, size // DTYPES[dtype].itemsize // n), n


def _topk(s: Selection) -> Iterator[Case]:
    for dtype in s.pick(s.dtypes[:1], s.dtypes[:1], s.dtypes):
        for n in s.pick((4096,), LENGTHS, LENGTHS):
            for k in s.pick((8,), (1, 8, 64), (1, 8, 64)):
                yield Case("softmax_topk", "topk", dtype, _rows(s, dtype, n), threads=s.threads[0],
                           device=s.device, variant=f"k={k}")  # fmt: skip
        for threads in s.threads:
            yield Case("softmax_topk", "moe", dtype, (16384, 256), threads=threads,
                       device=s.device, variant="k=8")  # fmt: skip


def _sparse(s: Selection) -> Iterator[Case]:
    more = (64, 1024) if s.density == Density.full else ()
    for dtype in s.pick(s.dtypes[:1], s.dtypes[:1], s.dtypes):
        for op in s.pick(SPARSE[:1], SPARSE, SPARSE):
            for n in s.pick((4096,), LENGTHS, (*more, *LENGTHS)):
                for name in (op, f"{op}_backward"):
                    yield Case(name, "sparse", dtype, _rows(s, dtype, n, SORTED_BYTES),
                               threads=s.threads[0], device=s.device)  # fmt: skip
