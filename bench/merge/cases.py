"""Which models' shapes are measured: [B, N, C] of the tokens, the rest in MODELS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..core.case import Case
from ..core.select import Density, Selection

SUITES = {
    "vit": "one layer's merging in a ViT: r tokens by the keys, sizes carried along",
    "diffusion": "half the tokens of a Stable Diffusion block merged and put back",
}


@dataclass(frozen=True)
class Model:
    suite: str
    shape: tuple[int, int, int]
    metric: int  # channels of the metric
    r: int


MODELS = {
    "ViT-B": Model("vit", (32, 197, 768), 64, 16),
    "ViT-L 384px": Model("vit", (8, 577, 1024), 64, 23),
    "ViT-H 518px": Model("vit", (4, 1370, 1280), 80, 40),
    "SD 512px": Model("diffusion", (2, 4096, 320), 320, 2048),
    "SD 1024px": Model("diffusion", (1, 16384, 320), 320, 8192),
}
OPS_OF = {
    "vit": ("match_merge", "merge", "merge_out", "merge_unmerge_grad"),
    "diffusion": ("merge_there_and_back",),
}


def cases(s: Selection) -> Iterator[Case]:
    """fp32, and in a full run the other dtypes too. Quick: one ViT."""
    names = s.pick(("ViT-B",), tuple(MODELS), tuple(MODELS))
    for suite in SUITES:
        for op in OPS_OF[suite]:
            for name in names:
                model = MODELS[name]
                if model.suite != suite or not s.wants(op, suite):
                    continue
                for dtype in s.dtypes if s.density == Density.full else s.dtypes[:1]:
                    for threads in s.threads:
                        yield Case(
                            op, suite, dtype, model.shape, threads=threads, device=s.device,
                            variant=name,
                        )  # fmt: skip
