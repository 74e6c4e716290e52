"""Bars: what a set of results must reach. The numbers themselves are data of each family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .case import PEER, Case, Result, geomean
from .roofline import TERA, Work

Metric = Callable[[Result], float | None]
Machine = Mapping[str, Any]  # as bench/core/env.py describes it


def speedup(peer: str = PEER) -> Metric:
    return lambda result: result.speedup(peer)


def of_ceiling(result: Result) -> float | None:
    return result.of_ceiling


def times_floor(result: Result) -> float | None:
    """Our time over what the traffic takes at the rate of a plain copy."""
    return result.ours.median / result.floor if result.floor else None


def tflops(work: Callable[[Case], Work]) -> Metric:
    """10^12 FLOP a second, of those that the case cannot do without."""
    return lambda r: sum(work(r.case).flops.values()) / r.ours.median / TERA


def times_copy(result: Result) -> float | None:
    """Our time over that of a streaming copy of the same tensor, timed in the same loop."""
    copy = result.speedup("copy")
    return 1 / copy if copy else None


def extra_us(result: Result) -> float | None:
    """Microseconds per call more than torch's."""
    peer = result.times.get(PEER)
    return (result.ours.median - peer.median) * 1e6 if peer else None


def milliseconds(result: Result) -> float:
    return result.ours.median * 1e3


def error_ratio(result: Result) -> float | None:
    """Our error over torch's."""
    return result.accuracy.ours / result.accuracy.peer if result.accuracy.peer else None


def h200(hopper: bool) -> Callable[[Machine], bool]:
    """An H200, with the kernels that need Hopper turned on or off."""
    return lambda machine: (
        "H200" in (machine.get("gpu") or "") and bool(machine.get("hopper_kernels")) == hopper
    )


@dataclass(frozen=True)
class Bar:
    """A limit on the geometric mean over the results that `where` picks, on each of them, or both.

    `at_most` turns the limits from least values into greatest ones. `machine`: which ones the
    limits are for, where it is not any.
    """

    title: str
    where: Callable[[Result], bool]
    metric: Metric
    mean: float | None = None
    each: float | None = None
    at_most: bool = False
    unit: str = "×"
    machine: Callable[[Machine], bool] | None = None

    def judge(self, results: Sequence[Result], machine: Machine | None = None) -> Verdict | None:
        """None when nothing measured falls under this bar, or the machine does not."""
        if self.machine and not self.machine(machine or {}):
            return None
        values = [(v, r) for r in results if self.where(r) and (v := self.metric(r)) is not None]
        if not values:
            return None
        pick = max if self.at_most else min
        worst, at = pick(values, key=lambda pair: pair[0])
        mean = geomean([v for v, _ in values]) if all(v > 0 for v, _ in values) else None
        return Verdict(self, len(values), mean, worst, at)

    def missed(self, value: float | None, limit: float | None) -> bool:
        if limit is None:
            return False
        if value is None:  # no geometric mean: some value was not positive
            return not self.at_most
        return value > limit if self.at_most else value < limit


@dataclass(frozen=True)
class Verdict:
    bar: Bar
    cells: int
    mean: float | None
    worst: float
    at: Result

    @property
    def met(self) -> bool:
        bar = self.bar
        return not bar.missed(self.mean, bar.mean) and not bar.missed(self.worst, bar.each)


def judge(
    bars: Sequence[Bar], results: Sequence[Result], machine: Machine | None = None
) -> list[Verdict]:
    """Verdicts of the bars that something was measured for, missed ones first."""
    verdicts = [verdict for bar in bars if (verdict := bar.judge(results, machine))]
    return sorted(verdicts, key=lambda verdict: verdict.met)
