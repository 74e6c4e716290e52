"""What a run was asked to measure, and how densely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Density(IntEnum):
    """quick: a taste in half a minute; overview: something of everything, in two minutes; standard:
    every bar, in some minutes; full: every size."""

    quick = 0
    overview = 1
    standard = 2
    full = 3


@dataclass(frozen=True)
class Selection:
    device: str
    threads: tuple[int, ...]  # (0,) on CUDA
    dtypes: tuple[str, ...]
    density: Density = Density.standard
    ops: frozenset[str] | None = None  # None: every one
    suites: frozenset[str] | None = None
    peers: tuple[str, ...] = ("torch", "copy")
    tensor_bytes: int = 64 << 20

    def wants(self, op: str, suite: str) -> bool:
        return (self.ops is None or op in self.ops) and (
            self.suites is None or suite in self.suites
        )

    def pick(self, quick: Sequence, standard: Sequence, full: Sequence) -> Sequence:
        """An overview takes the quick choice, unless a family says otherwise."""
        return (quick, quick, standard, full)[self.density]
