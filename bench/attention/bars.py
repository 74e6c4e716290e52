"""What the family must reach on a CPU: AVX-512, one and two threads."""

from __future__ import annotations

from collections.abc import Callable

from ..core.bars import Bar, milliseconds, speedup
from ..core.case import Result
from .cases import MASKS
from .masks import FORMS


def _at(op: str, *masks: str, dtypes: tuple[str, ...] = ()) -> Callable[[Result], bool]:
    def where(result: Result) -> bool:
        case = result.case
        return (
            case.device == "cpu"
            and case.op == op
            and case.variant in masks
            and (not dtypes or case.dtype in dtypes)
        )

    return where


def _share(mask: str) -> float:
    """The bar on time is (1.15 d + 0.01) of the own dense time."""
    return round(1 / (1.15 * MASKS[mask].density + 0.01), 2)


FORWARD, GRAD = "attention", "attention_grad"
BARS = [
    Bar("attention, everything kept, fp32", _at(FORWARD, "dense", dtypes=("fp32",)), speedup(),
        each=1.15),
    Bar("  bf16", _at(FORWARD, "dense", dtypes=("bf16",)), speedup(), each=2.1),
    Bar("  fp16", _at(FORWARD, "dense", dtypes=("fp16",)), speedup(), each=1.6),
    *(
        Bar(f"{mask} of the blocks, against the own dense time", _at(FORWARD, mask),
            speedup("own dense"), each=_share(mask))
        for mask in ("50 %", "25 %", "10 %", "5 %")
    ),
    Bar("blocks of 32, share of the rate of 64", _at(FORWARD, "10 % of 32"),
        speedup("blocks of 64"), each=0.85),
    Bar("blocks of 16, share of the rate of 64", _at(FORWARD, "10 % of 16"),
        speedup("blocks of 64"), each=0.7),
    Bar("patterns at 10 %, against SDPA with a mask",
        _at(FORWARD, "window", "documents", "bigbird"), speedup(), each=6),
    Bar("  against compiled FlexAttention", _at(FORWARD, "window", "documents", "bigbird"),
        speedup("flex"), each=1),
    Bar("forward and backward, everything kept, fp32", _at(GRAD, "dense", dtypes=("fp32",)),
        speedup(), each=1),
    Bar("  bf16", _at(GRAD, "dense", dtypes=("bf16",)), speedup(), each=1.5),
    Bar("  25 % of the blocks", _at(GRAD, "25 %"), speedup(), each=3),
    Bar("a mask of 131072 tokens", _at("block_mask", *FORMS), milliseconds, each=50, at_most=True,
        unit=" ms"),
]  # fmt: skip
