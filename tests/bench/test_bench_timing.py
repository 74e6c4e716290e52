"""Statistics, and the order in which candidates and buffers take turns."""

import gc
import platform
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import torch

from bench.core.timing import Effort, Stats, measure


def test_stats_are_the_quartiles():
    stats = Stats.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (stats.q1, stats.median, stats.q3, stats.repeats) == (2.0, 3.0, 4.0, 5)
    assert stats.iqr == 2.0
    assert stats.spread == pytest.approx(2 / 3)


def test_stats_of_one_sample():
    assert Stats.of([2.0]) == Stats(2.0, 2.0, 2.0, 1)


def test_effort_bounds_rounds():
    effort = Effort(seconds=1.0, min_rounds=5, max_rounds=50)
    assert effort.rounds(0.1) == 10
    assert effort.rounds(10.0) == 5
    assert effort.rounds(1e-6) == 50


def slow_calls(log, name, sets):
    """Calls long enough to be samples of their own, which log (name, buffer set)."""

    def call(index):
        log.append((name, index))
        time.sleep(3e-4)

    return [lambda i=i: call(i) for i in range(sets)]


def test_candidates_interleave_and_buffers_rotate():
    log = []
    calls = {name: slow_calls(log, name, 3) for name in ("a", "b")}
    stats = measure(calls, "cpu", Effort(0, min_rounds=12), cold=True)
    assert stats["a"].repeats == stats["b"].repeats == 12
    timed = log[-24:]
    rounds = [timed[i : i + 2] for i in range(0, 24, 2)]
    # Both in every round, each going first sometimes, never twice in a row on one buffer set.
    orders = ["".join(name for name, _ in r) for r in rounds]
    assert set(orders) == {"ab", "ba"}
    assert all(before[1] != after[1] for before, after in pairwise(timed))
    # A candidate does not keep to one buffer set, whose pages may lie luckily.
    assert {index for name, index in timed if name == "a"} == {0, 1, 2}


def test_a_slower_candidate_is_seen_as_slower():
    calls = {"fast": [lambda: None], "slow": [lambda: time.sleep(1e-3)]}
    stats = measure(calls, "cpu", Effort(0.05), cold=False)
    assert stats["fast"].median < 1e-5 < 1e-3 <= stats["slow"].median


def test_collector_is_off_while_timing_and_on_again_after():
    seen = []
    measure({"a": [lambda: seen.append(gc.isenabled())]}, "cpu", Effort(0, 1, 1), cold=False)
    assert not any(seen)
    assert gc.isenabled()


def test_collector_comes_back_after_an_error():
    with pytest.raises(ZeroDivisionError):
        measure({"a": [lambda: 1 / 0]}, "cpu", Effort(), cold=False)
    assert gc.isenabled()


class FakeGpu:
    """Enough of torch.cuda to time calls: a clock that each call moves on."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.flushed = []
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = gpu.now

            def elapsed_time(self, end):
                return end.at - self.at

        class Flush:
            def __init__(self, size):
                self.size = size

            def zero_(self):
                gpu.flushed.append(self.size)
                gpu.now += 10

        class Properties:
            L2_cache_size = 1000

        for name, fake in {
            "Event": Event,
            "synchronize": lambda: None,
            "_sleep": lambda cycles: None,
            "current_device": lambda: 0,
            "get_device_properties": lambda device: Properties,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch, "empty", lambda size, dtype, device: Flush(size))

    def call(self, milliseconds):
        def work():
            self.now += milliseconds

        return work


@pytest.mark.parametrize(("cold", "flushed"), [(True, 2000), (False, 1)])
def test_cuda_times_are_between_the_events_and_leave_the_flush_out(monkeypatch, cold, flushed):
    gpu = FakeGpu(monkeypatch)
    calls = {"a": [gpu.call(1.0), gpu.call(3.0)], "b": [gpu.call(5.0)] * 2}
    stats = measure(calls, "cuda", Effort(0, min_rounds=40), cold)
    assert stats["b"] == Stats(5e-3, 5e-3, 5e-3, 40)
    assert (stats["a"].q1, stats["a"].q3) == (1e-3, 3e-3)  # both buffer sets were used
    assert set(gpu.flushed) == {flushed}


def test_freed_memory_is_kept():
    """A large tensor where a larger one was costs no page faults."""
    code = """
import resource, torch
from bench.core import env

def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(megabytes << 18).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = env.keep_freed_memory()
print(kept, faults(128), faults(64))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, first, second = done.stdout.split()
    assert (kept == "True") == (platform.libc_ver()[0] == "glibc")
    assert kept == "False" or int(second) < int(first) / 10
