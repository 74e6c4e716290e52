"""Merging forms no score matrix: memory above inputs and outputs, against the public code."""

from __future__ import annotations

import sys

import pytest

from bench.merge.memory import LIMITS, peak_bytes


@pytest.mark.large
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("model", LIMITS)
def test_memory_above_inputs_and_outputs(model):
    assert peak_bytes("fastops", model) <= LIMITS[model] * peak_bytes("torch", model)
