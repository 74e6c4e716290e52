"""Which shapes and patterns each suite measures. A case's shape is (rows, in, out)."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.case import Case
from ..core.select import Selection

SUITES = {
    "nm_gemm": "many rows: ViT-B and 4096 x 4096 layers; on a GPU 8192 x 8192 too",
    "nm_decode": "1, 4 and 8 rows against weights that are in no cache",
}

GEMM = ((128, 768, 3072), (1024, 768, 3072), (512, 4096, 4096))
DECODE = ((1, 4096, 4096), (1, 4096, 14336), (4, 4096, 4096), (8, 4096, 4096))
HUGE = ((4096, 8192, 8192), (8192, 8192, 8192))  # on a GPU
PATTERNS = ("2:4", "1:4", "2:8", "1:8")


def cases(selection: Selection) -> Iterator[Case]:
    """Every case of the selection."""
    s = selection
    wide = {"nm_gemm": GEMM, "nm_decode": DECODE}
    for suite, shapes in wide.items():
        if not s.wants("nm_linear", suite):
            continue
        for dtype in s.pick(s.dtypes[:1], s.dtypes, s.dtypes):
            for shape in s.pick(shapes[:1], shapes, shapes):
                every = (*PATTERNS, "3:4", "4:8") if suite == "nm_gemm" else PATTERNS
                for pattern in s.pick(("2:4",), every[:4:2] if dtype == "fp16" else every, every):
                    for threads in s.threads:
                        yield Case(
                            "nm_linear", suite, dtype, shape, threads=threads, device=s.device,
                            variant=pattern, warm=suite == "nm_gemm" and s.device == "cpu",
                        )  # fmt: skip
    if s.device == "cuda" and "bf16" in s.dtypes and s.wants("nm_linear", "nm_gemm"):
        for shape in s.pick(HUGE[-1:], HUGE, HUGE):
            yield Case("nm_linear", "nm_gemm", "bf16", shape, threads=s.threads[0],
                       device=s.device, variant="2:4")  # fmt: skip
