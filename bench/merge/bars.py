"""What the family must reach, on two threads, fp32. Outputs are allocated by every candidate alike,
except where the case says otherwise."""

from __future__ import annotations

from collections.abc import Callable

from ..core.bars import Bar, of_ceiling, speedup, times_floor
from ..core.case import Result


def _at(op: str, *models: str, device: str = "cpu") -> Callable[[Result], bool]:
    def where(result: Result) -> bool:
        case = result.case
        return (
            case.device == device
            and case.op == op
            and (not models or case.variant in models)
            and (device == "cuda" or (case.threads == 2 and case.dtype == "fp32"))
        )

    return where


BARS = [
    Bar("match + plan + merge, ViT-B", _at("match_merge", "ViT-B"), speedup(), each=10),
    Bar("  ViT-L 384px", _at("match_merge", "ViT-L 384px"), speedup(), each=8),
    Bar("  ViT-H 518px", _at("match_merge", "ViT-H 518px"), speedup(), each=6),
    Bar("merge alone, share of a streaming copy's speed", _at("merge_out"), of_ceiling, each=0.7),
    Bar("  against embedding_bag", _at("merge"), speedup("embedding_bag"), each=1.4),
    Bar("Stable Diffusion, there and back", _at("merge_there_and_back"), speedup(), each=1.5),
    Bar("  against tomesd", _at("merge_there_and_back"), speedup("tomesd"), each=1.5),
    Bar("merge + unmerge, forward and backward, ViT-B", _at("merge_unmerge_grad", "ViT-B"),
        speedup(), each=5),
    *(Bar(f"CUDA match + plan + merge{asked}", _at("match_merge", device="cuda"), metric, each=each,
          at_most=metric is times_floor)
      for asked, metric, each in (
          (" against eager ToMe", speedup(), 5),
          (" against compiled ToMe", speedup("compile"), 2),
          (" over a copy of its traffic", times_floor, 3),
      )),
]  # fmt: skip
