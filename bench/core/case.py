"""What the harness passes around: a case, the work it stands for, and what came out of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .timing import Call, Stats

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
OURS = "fastops"
PEER = "torch"  # the peer that bars, heat maps and error comparisons refer to


@dataclass(frozen=True)
class Case:
    """One cell of the measurement: an op on one shape, dtype, device and thread count."""

    op: str
    suite: str
    dtype: str
    shape: tuple[int, ...]
    dim: int = -1
    threads: int = 1
    device: str = "cpu"
    variant: str = ""  # which mask, which model
    warm: bool = False  # small enough for the cache, and meant to find it there

    @property
    def n(self) -> int:
        return self.shape[self.dim]

    @property
    def rows(self) -> int:
        return math.prod(self.shape) // self.n

    @property
    def label(self) -> str:
        shape = "×".join(map(str, self.shape))
        dim = "" if self.dim in (-1, len(self.shape) - 1) else f" dim {self.dim}"
        return f"{shape}{dim}" + (f" {self.variant}" if self.variant else "")

    @property
    def brief(self) -> str:
        """What tells the case from others of its op and suite."""
        threads = f" {self.threads}T" if self.device == "cpu" else ""
        return f"{self.label} {self.dtype}{threads}"

    @property
    def key(self) -> str:
        where = self.device if self.device != "cpu" else f"cpu {self.threads}T"
        return f"{self.op} {self.suite} {self.dtype} {where} {self.label}"


@dataclass
class Workload:
    """A case with its buffers: per candidate one call for each buffer set, ours first."""

    calls: dict[str, Sequence[Call]]
    traffic: int  # bytes that must move: every input once, every output once
    verify: Callable[[], Accuracy]
    notes: dict[str, str] = field(default_factory=dict)  # what a peer does, or why it is missing
    host: bool = False  # the host's time counts, not the device's


@dataclass(frozen=True)
class Accuracy:
    """Largest errors against float64, relative to the largest magnitude in the row."""

    ours: float
    peer: float
    rounding: float  # half an ulp of the output dtype, at 1

    @property
    def right(self) -> bool:
        """At most twice the error of plain PyTorch, plus one rounding of the output."""
        return self.ours <= 2 * self.peer + self.rounding


@dataclass
class Result:
    """A measured case."""

    case: Case
    times: dict[str, Stats]
    traffic: int
    accuracy: Accuracy
    ceiling: float | None = None  # bytes per second of a plain copy; None for work in cache
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> Stats:
        return self.times[OURS]

    @property
    def rate(self) -> float:
        """Bytes of minimal traffic per second."""
        return self.traffic / self.ours.median

    @property
    def floor(self) -> float | None:
        return self.traffic / self.ceiling if self.ceiling else None

    @property
    def of_ceiling(self) -> float | None:
        return self.rate / self.ceiling if self.ceiling else None

    @property
    def peers(self) -> list[str]:
        return [name for name in self.times if name != OURS]

    def speedup(self, peer: str = PEER) -> float | None:
        return self.times[peer].median / self.ours.median if peer in self.times else None

    def to_dict(self) -> dict[str, Any]:
        return {"key": self.case.key, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        return cls(
            case=Case(**{**data["case"], "shape": tuple(data["case"]["shape"])}),
            times={name: Stats(**stats) for name, stats in data["times"].items()},
            traffic=data["traffic"],
            accuracy=Accuracy(**data["accuracy"]),
            ceiling=data["ceiling"],
            notes=dict(data["notes"]),
        )


def geomean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))
