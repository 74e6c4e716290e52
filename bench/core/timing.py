"""Time several candidates side by side, so that whatever disturbs one disturbs all."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles

import torch

Call = Callable[[], object]

# A sample shorter than this is mostly clock: fast calls are repeated until one is at least so long.
MIN_SAMPLE_S = 1e-4


@dataclass(frozen=True)
class Stats:
    """Seconds per call: the median and the quartiles of `repeats` samples."""

    median: float
    q1: float
    q3: float
    repeats: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Stats:
        if len(samples) < 2:
            return cls(samples[0], samples[0], samples[0], len(samples))
        q1, median, q3 = quantiles(samples, n=4, method="inclusive")
        return cls(median, q1, q3, len(samples))

    @property
    def iqr(self) -> float:
        return self.q3 - self.q1

    @property
    def spread(self) -> float:
        """The interquartile range relative to the median."""
        return self.iqr / self.median if self.median else 0.0


@dataclass(frozen=True)
class Effort:
    """How long a case may be measured: seconds, within a least and a greatest number of rounds."""

    seconds: float = 0.5
    min_rounds: int = 7
    max_rounds: int = 101

    def rounds(self, one_round_s: float) -> int:
        wanted = int(self.seconds / max(one_round_s, 1e-9))
        return min(max(wanted, self.min_rounds), self.max_rounds)


def measure(
    calls: Mapping[str, Sequence[Call]], device: str, effort: Effort, cold: bool
) -> dict[str, Stats]:
    """Time every candidate of `calls`; each brings one call per buffer set.

    Every round runs all candidates in an order drawn anew, so that none always follows the one
    that leaves the cache full of dirty lines. Consecutive calls use consecutive buffer sets: with
    sets larger together than the cache, no call finds its input warmed by the one before. On CUDA
    `cold` also flushes L2 before each sample.
    """
    gc_was_on = gc.isenabled()
    gc.disable()
    try:
        if device == "cuda":
            return _measure_cuda(calls, effort, cold)
        return _measure_cpu(calls, effort)
    finally:
        if gc_was_on:
            gc.enable()


def draw_turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Every name once a round, in the same random orders each time."""
    draw = random.Random(0)
    for _ in range(rounds):
        yield from draw.sample(names, len(names))


def _measure_cpu(calls: Mapping[str, Sequence[Call]], effort: Effort) -> dict[str, Stats]:
    clock = time.perf_counter
    repeats = {}
    for name, sets in calls.items():  # the first call warms up, the second tells the duration
        sets[0]()
        begin = clock()
        sets[-1]()
        repeats[name] = max(1, round(MIN_SAMPLE_S / max(clock() - begin, 1e-7)))

    def sample(name: str, turn: int) -> float:
        sets = calls[name]
        if repeats[name] == 1:
            call = sets[turn % len(sets)]
            begin = clock()
            call()
            return clock() - begin
        work = [sets[(turn + i) % len(sets)] for i in range(repeats[name])]
        begin = clock()
        for call in work:
            call()
        return (clock() - begin) / len(work)

    names = list(calls)
    begin = clock()
    for turn, name in enumerate(names):
        sample(name, turn)
    rounds = effort.rounds(clock() - begin)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn, name in enumerate(draw_turns(names, rounds)):
        samples[name].append(sample(name, turn))
    return {name: Stats.of(taken) for name, taken in samples.items()}


LEAST_SLEEP_CYCLES, MOST_SLEEP_S, CLOCK_HZ = 200_000, 0.02, 2e9


def sleep_cycles(queueing_s: float) -> int:
    """Twice what the host takes to queue a call, on a fast clock; a call that waits for the device
    itself takes long whatever one does."""
    return max(LEAST_SLEEP_CYCLES, int(2 * min(queueing_s, MOST_SLEEP_S) * CLOCK_HZ))


def _measure_cuda(
    calls: Mapping[str, Sequence[Call]], effort: Effort, cold: bool
) -> dict[str, Stats]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    flush = torch.empty(
        2 * properties.L2_cache_size if cold else 1, dtype=torch.int8, device="cuda"
    )

    queueing = dict.fromkeys(calls, 0.0)  # seconds of the host's, by candidate

    def record(name: str, turn: int) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        sets = calls[name]
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        # The device sleeps while the host queues the call: an idle stream would be timed otherwise,
        # and a peer of many small kernels would pay for its launches.
        torch.cuda._sleep(sleep_cycles(queueing[name]))
        start.record()
        sets[turn % len(sets)]()
        end.record()
        return start, end

    names = list(calls)
    for name in names:  # compiles, loads modules, fills the allocator
        for turn in range(3):
            record(name, turn)
            torch.cuda.synchronize()
        begin = time.perf_counter()
        calls[name][0]()
        queueing[name] = time.perf_counter() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for turn, name in enumerate(names):
        record(name, turn)
    torch.cuda.synchronize()
    events: dict[str, list] = {name: [] for name in names}
    for turn, name in enumerate(draw_turns(names, effort.rounds(time.perf_counter() - begin))):
        events[name].append(record(name, turn))
        if turn % 32 == 31:  # keeps the queue of launches short of its limit
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return {
        name: Stats.of([start.elapsed_time(end) * 1e-3 for start, end in pairs])
        for name, pairs in events.items()
    }
