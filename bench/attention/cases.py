"""Which shapes [B, H, S, D] and which masks are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import fastops
from fastops import BlockMask

from ..core.case import Case
from ..core.select import Density, Selection
from .masks import FORMS, LENGTH

SUITES = {
    "dense": "everything kept: what the kernels themselves are worth, against SDPA",
    "blocks": "random blocks at several densities, against SDPA with a mask and the own dense time",
    "masks": "making masks of 131072 tokens in blocks of 128, which takes the blocks they keep",
    "patterns": "windows, documents and BigBird at 8192 tokens, against SDPA with a mask",
}
DENSE = ((1, 8, 4096, 64), (1, 4, 4096, 128))
LONG = (1, 8, 8192, 64)
# What a GPU is held to, in bf16: 16k tokens of 2048 channels.
WIDE = ((1, 16, 16384, 128), (1, 32, 16384, 64))


@dataclass(frozen=True)
class Kept:
    """A mask by name: random blocks, or a pattern; and the share of blocks that it is to keep."""

    suite: str
    make: Callable[[int], BlockMask | None]
    density: float = 1.0
    block: int = 64

    def share(self, length: int) -> float:
        """Of its elements a mask of so many tokens keeps: random blocks are whole ones in a row."""
        blocks = length // self.block
        return _kept(self.density, blocks) / blocks if self.suite == "blocks" else self.density


def _kept(density: float, blocks: int) -> int:
    """Of a row of so many."""
    return max(1, round(density * blocks))


def random_blocks(length: int, density: float, block: int) -> BlockMask:
    """The same number of blocks in every row."""
    n = length // block
    draw = torch.rand(n, n, generator=torch.Generator().manual_seed(0))
    kept = draw.argsort(-1) < _kept(density, n)
    return BlockMask.from_dense(kept, block)


def _random(density: float, block: int) -> Kept:
    return Kept("blocks", lambda n: random_blocks(n, density, block), density, block)


def _documents(length: int) -> BlockMask:
    tenth = length // 10
    return BlockMask.documents([*range(0, 10 * tenth, tenth), length], block_size=64)


# What "10 %" keeps of blocks of 64, so that smaller blocks have as much to do.
TENTH = _kept(0.1, DENSE[0][2] // 64) / (DENSE[0][2] // 64)
MASKS = {
    "dense": Kept("dense", lambda n: None),
    "50 %": _random(0.5, 64),
    "25 %": _random(0.25, 64),
    "10 %": _random(0.1, 64),
    "5 %": _random(0.05, 64),
    "10 % of 32": _random(TENTH, 32),
    "10 % of 16": _random(TENTH, 16),
    "10 % of 128": _random(0.1, 128),
    "100 % of 128": _random(1.0, 128),
    "window": Kept(
        "patterns", lambda n: BlockMask.sliding_window(n, n // 20, n // 20, block_size=64), 0.1
    ),
    "documents": Kept("patterns", _documents, 0.1),
    "bigbird": Kept("patterns", lambda n: fastops.BlockMask.bigbird(n, 64, 5, 2, 4), 0.1),
}
# On a GPU only. 10 % of blocks of 128 are 16 a row at 20480 tokens.
WIDE_MASKS = {
    "dense": WIDE,
    "100 % of 128": WIDE,
    "25 %": WIDE[:1],
    "10 %": WIDE,
    "5 %": WIDE[:1],
    "10 % of 128": ((1, 16, 20480, 128), (1, 32, 20480, 64)),
}
OPS_OF = {
    "dense": ("attention", "attention_grad"),
    "blocks": ("attention", "attention_grad"),
    "patterns": ("attention",),
}


def cases(s: Selection) -> Iterator[Case]:
    quick = ("dense", "10 %")
    graded = ("dense", "25 %")  # whose gradient has a bar
    every = tuple(name for name, mask in MASKS.items() if mask.block <= 64)
    for name in s.pick(quick, every, every):
        suite = MASKS[name].suite
        shapes = DENSE if suite == "dense" else (LONG if suite == "patterns" else DENSE[0],)
        for op in OPS_OF[suite]:
            if not s.wants(op, suite) or (op == "attention_grad" and name not in graded):
                continue
            for shape in shapes[: 1 if s.density <= Density.overview else None]:
                for dtype in s.pick(s.dtypes[:2], s.dtypes, s.dtypes):
                    for threads in s.pick(s.threads[-1:], s.threads, s.threads):
                        yield Case(
                            op, suite, dtype, shape, threads=threads, device=s.device, variant=name,
                            warm=True,
                        )  # fmt: skip
    if s.device == "cuda" and "bf16" in s.dtypes:
        yield from _wide(s)
    if s.device == "cpu" and s.wants("block_mask", "masks"):
        for name in s.pick(("causal",), tuple(FORMS), tuple(FORMS)):
            for threads in s.pick(s.threads[-1:], s.threads, s.threads):
                yield Case("block_mask", "masks", "int32", (LENGTH,), threads=threads,
                           variant=name, warm=True)  # fmt: skip


def _wide(s: Selection) -> Iterator[Case]:
    every = tuple(WIDE_MASKS)
    for op in ("attention", "attention_backward"):
        for name in s.pick(every[:1], every, every):
            suite, shapes = MASKS[name].suite, WIDE_MASKS[name]
            if s.wants(op, suite):
                for shape in s.pick(shapes[:1], shapes, shapes):
                    yield Case(
                        op, suite, "bf16", shape, threads=s.threads[0], device=s.device,
                        variant=name,
                    )  # fmt: skip
