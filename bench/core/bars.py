"""Bars: what a set of results must reach. The numbers themselves are data of each family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .case import PEER, Result, geomean

Metric = Callable[[Result], float | None]


def speedup(peer: str = PEER) -> Metric:
    return lambda result: result.speedup(peer)


def of_ceiling(result: Result) -> float | None:
    return result.of_ceiling


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


@dataclass(frozen=True)
class Bar:
    """A limit on the geometric mean over the results that `where` picks, on each of them, or both.

    `at_most` turns the limits from least values into greatest ones.
    """

    title: str
    where: Callable[[Result], bool]
    metric: Metric
    mean: float | None = None
    each: float | None = None
    at_most: bool = False
    unit: str = "×"

    def judge(self, results: Sequence[Result]) -> Verdict | None:
        """None when nothing measured falls under this bar."""
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


def judge(bars: Sequence[Bar], results: Sequence[Result]) -> list[Verdict]:
    """Verdicts of the bars that something was measured for, missed ones first."""
    verdicts = [verdict for bar in bars if (verdict := bar.judge(results))]
    return sorted(verdicts, key=lambda verdict: verdict.met)
