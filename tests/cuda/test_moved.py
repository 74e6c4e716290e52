"""Carrying ops to another device: here to copies on the CPU."""

from __future__ import annotations

import pytest
import torch

import fastops
from tests.cuda import moved
from tests.cuda.calls import CALLS
from tests.numerics import EMULATED, same_bits

pytestmark = pytest.mark.skipif(
    EMULATED or moved.DEVICE is not None, reason="the tests are carried already"
)


@pytest.mark.parametrize("call", [c for c in CALLS if c.dtype == torch.float32], ids=lambda c: c.id)
def test_results_come_back(call) -> None:
    expected = call.results(call.inputs())
    with moved.Carry("cpu") as carry:
        got = call.results(call.inputs())
    assert carry.count and all(map(same_bits, got, expected))
    assert [t.stride() for t in got] == [t.stride() for t in expected]


def test_what_is_written_comes_back_and_nothing_else() -> None:
    x = torch.randn(9, 14)[:, ::2].t()
    storage = torch.full((200,), 7.0)
    out = storage[3:131:2].view(-1)[:63].view(7, 9)
    with moved.Carry("cpu") as carry:
        answer = fastops.softmax(x, out=out)
    assert carry.count == 1 and answer is out
    torch.testing.assert_close(out, torch.softmax(x, -1))
    untouched = torch.ones(200, dtype=torch.bool)
    untouched[3:129:2] = False
    assert (storage[untouched] == 7).all()


def test_the_op_works_on_copies(monkeypatch) -> None:
    """An op that wrote to an input of the test's own would not be told from one that did not."""
    seen = []
    place = moved.place
    monkeypatch.setattr(moved, "place", lambda t, s: seen.append((t, place(t, s))) or seen[-1][1])
    x = torch.randn(4, 6)[1:, 2:]
    with moved.Carry("cpu"):
        fastops.softmax(x)
    source, copy = seen[0]
    assert source.untyped_storage()._cdata != copy.untyped_storage()._cdata
    assert torch.equal(source, copy)
    assert (source.stride(), source.storage_offset()) == (copy.stride(), copy.storage_offset())
