"""What the family must reach on a CPU (AVX-512, one and two threads), and on an H200."""

from __future__ import annotations

from collections.abc import Callable

from ..core.bars import Bar, h200, milliseconds, speedup, tflops
from ..core.case import Result
from .cases import DENSE, MASKS, WIDE_MASKS
from .masks import FORMS
from .model import work


def _at(
    op: str, *masks: str, dtypes: tuple[str, ...] = (), device: str = "cpu"
) -> Callable[[Result], bool]:
    def where(result: Result) -> bool:
        case = result.case
        return (
            case.device == device
            and case.op == op
            and case.variant in masks
            and (not dtypes or case.dtype in dtypes)
        )

    return where


def _share(mask: str) -> float:
    """The bar on time is (1.15 d + 0.01) of the own dense time."""
    return round(1 / (1.15 * MASKS[mask].share(DENSE[0][2]) + 0.01), 2)


def _wide(op: str, *masks: str, channels: int | None = None) -> Callable[[Result], bool]:
    """16k tokens or more, on a GPU."""
    here = _at(op, *masks, dtypes=("bf16",), device="cuda")
    return lambda r: (
        here(r)
        and r.case.shape in WIDE_MASKS[r.case.variant]
        and channels in (None, r.case.shape[3])
    )


def of_dense_rate(result: Result) -> float | None:
    """The rate per listed block, as a share of that of the own dense pass."""
    times, case = result.speedup("own dense"), result.case
    return times and times * MASKS[case.variant].share(case.shape[2])


def _cuda_bars() -> list[Bar]:
    lists, sparse = ("dense", "100 % of 128"), ("25 %", "10 %", "5 %", "10 % of 128")
    bars = [
        Bar(f"CUDA {name}, {kernels}, 16k tokens, everything kept, {channels or 'all'} channels",
            _wide(op, *lists, channels=channels), tflops(work), each=limit, unit=" TFLOP/s",
            machine=h200(hopper=kernels == "Hopper kernels"))
        for name, op, kernels, channels, limit in (
            ("attention", FORWARD, "Hopper kernels", 128, 620),
            ("attention", FORWARD, "Hopper kernels", 64, 480),
            ("backward", BACKWARD, "Hopper kernels", None, 480),
            ("attention", FORWARD, "sm_80 kernels", 128, 330),
            ("backward", BACKWARD, "sm_80 kernels", 128, 250),
        )
    ]  # fmt: skip
    tenth = _wide(FORWARD, "10 %", "10 % of 128")
    title = "CUDA attention, 10 % of the blocks, rate per block over the own dense one"
    bars.append(Bar(title, tenth, of_dense_rate, each=0.9))
    for name, op in (("attention", FORWARD), ("backward", BACKWARD)):
        bars += [
            *(Bar(f"CUDA {name}, everything kept, against {peer}", _wide(op, "dense"),
                  speedup(peer), each=1, machine=h200(hopper=True))
              for peer in ("sdpa_cudnn", "flex")),
            Bar(f"CUDA {name}, at most 25 % of the blocks, against flex", _wide(op, *sparse),
                speedup("flex"), each=1),
        ]  # fmt: skip
    return bars


FORWARD, BACKWARD, GRAD = "attention", "attention_backward", "attention_grad"
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
    *_cuda_bars(),
]  # fmt: skip
