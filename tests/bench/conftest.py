"""A run made up for the tests."""

import pytest

from bench.core.ceilings import Ceilings
from bench.core.report import Run

from .made_up import made_up


@pytest.fixture
def run() -> Run:
    shapes = [(262144, 64), (16384, 1024), (16, 1 << 20)]
    results = [
        made_up(1 + 0.1 * i, dtype=dtype, threads=threads, shape=shape)
        for dtype in ("fp32", "bf16")
        for threads in (1, 2)
        for i, shape in enumerate(shapes)
    ]
    results.append(made_up(3.0, 2.0, op="masked_softmax", variant="mask <25 %>"))  # a loss
    results.append(made_up(suite="cache", shape=(16, 1024), warm=True))
    results[-1].ceiling = None
    machine = {
        "cpu": "Some CPU", "isa": "avx512", "cores": 2, "caches": {"L3": "32768K"},
        "torch": "2.13.0", "date": "2026-01-01 00:00 UTC", "load": 0.0,
    }  # fmt: skip
    return Run(machine, Ceilings({1: 33e9, 2: 41e9}, how="copy"), results)
