"""The list of calls itself, on any machine: it leaves no op out, and every call of it works."""

from __future__ import annotations

import inspect

import pytest
import torch

import fastops
from tests.cuda.calls import CALLS
from tests.numerics import same_bits

# Not functions of tensors alone: they make or change modules, or are part of another function.
NO_CALLS = {"sparsify_", "prune_plan"}
NEVER_LAUNCHED = {"_nm_kind"}  # answers on the host


def test_every_function_and_every_op_is_called() -> None:
    public = {name for name in fastops.__all__ if inspect.isfunction(getattr(fastops, name))}
    assert public - NO_CALLS == {call.op for call in CALLS}
    with torch.autograd.profiler.profile() as profile:  # sees ops that ops call
        for call in CALLS:
            if call.dtype == torch.float32:
                call.results(call.inputs())
    called = {event.name.removeprefix("fastops::") for event in profile.function_events}
    registered = {
        name.removeprefix("fastops::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastops::")
    }
    assert registered - called <= NEVER_LAUNCHED


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.id)
def test_every_call_answers_the_same_twice(call) -> None:
    first, second = (call.results(call.inputs()) for _ in range(2))
    assert len(first) > len(call.wrt)
    assert all(map(same_bits, first, second))
    for t in first:
        # A kernel that writes nothing must show in the comparisons: no answer is all zeros.
        assert not t.is_floating_point() or t.count_nonzero()


def test_names_tell_calls_apart() -> None:
    assert len({call.id for call in CALLS}) == len(CALLS)
