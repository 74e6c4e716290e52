"""How the CUDA kernels take part in a program: captured, on any stream and device, wherever their
inputs start, and on CuPy's arrays. Needs a GPU."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from tests.cuda.calls import CALLS, Call
from tests.numerics import same_bits

HERE = torch.cuda.is_available()
cuda = pytest.mark.skipif(not HERE, reason="needs a GPU")


def over(calls: Iterable[Call]) -> pytest.MarkDecorator:
    """Parametrises by calls; by none, which is one skip, where there is no GPU."""
    return pytest.mark.parametrize("call", list(calls) if HERE else [], ids=lambda call: call.id)


every_call = over(CALLS)
capturable = over(call for call in CALLS if call.captures)


def close(got: list[Tensor], expected: list[Tensor]) -> None:
    """Equal up to the order of sums and the rounding of their parts; integers exactly."""
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        if not b.is_floating_point():
            assert torch.equal(a.cpu(), b.cpu())
            continue
        tolerance = 64 * torch.finfo(b.dtype).eps
        largest = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 0.0
        torch.testing.assert_close(
            a.cpu(), b.cpu(), rtol=tolerance, atol=tolerance * largest, equal_nan=True
        )


def same(got: list[Tensor], expected: list[Tensor]) -> bool:
    return len(got) == len(expected) and all(map(same_bits, got, expected))


@cuda
@every_call
def test_agrees_with_the_cpu(call: Call) -> None:
    close(call.results(call.inputs("cuda")), call.results(call.inputs()))


@cuda
@capturable
def test_graph_capture(call: Call) -> None:
    """A captured call reads its inputs anew at each replay. What waits for the device, or copies
    from the host, breaks the capture."""
    inputs = call.inputs("cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # loads modules, which a capture may not
            call.results(inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call.results(inputs)
    for t in inputs.values():
        if t.is_floating_point():
            t.copy_(t.flip(0))
    expected = call.results(inputs)
    for _ in range(2):
        for t in captured:
            t.zero_()
        graph.replay()
        assert same(captured, expected)


@cuda
@every_call
def test_other_stream(call: Call) -> None:
    """On torch's current stream: a kernel on another would not find the inputs there yet."""
    inputs = call.inputs("cuda")
    expected = call.results(inputs)
    late = {name: torch.zeros_like(t) for name, t in inputs.items()}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        for name, t in late.items():
            t.copy_(inputs[name])
        got = call.results(late)
    stream.synchronize()
    assert same(got, expected)


@cuda
@capturable
def test_nothing_waits_for_the_device(call: Call) -> None:
    inputs = call.inputs("cuda")
    call.results(inputs)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call.results(inputs)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_call
def test_other_device(call: Call) -> None:
    """The device of the inputs, while another one is current."""
    expected = call.results(call.inputs("cuda:0"))
    with torch.cuda.device(0):
        got = call.results(call.inputs("cuda:1"))
    assert all(t.device == torch.device("cuda:1") for t in got)
    close(got, expected)


@cuda
@every_call
def test_same_bits_beside_other_work(call: Call) -> None:
    """While another stream keeps the memory busy, and wherever the allocator puts the results."""
    inputs = call.inputs("cuda")
    expected = call.results(inputs)
    noise = torch.empty(1 << 26, dtype=torch.int8, device="cuda")
    busy, held = torch.cuda.Stream(), []
    for i in range(8):
        with torch.cuda.stream(busy):
            noise.add_(1)
        held = [*held[-2:], torch.empty(1 + 512 * i, device="cuda")]
        assert same(call.results(inputs), expected), i


def misaligned(t: Tensor, offset: int) -> Tensor:
    """The same values `offset` elements into an allocation."""
    if not t.is_floating_point():
        return t
    return t.new_empty(t.numel() + offset)[offset:].view(t.shape).copy_(t)


MISALIGNED = [
    *((call, "cpu", 1) for call in CALLS if call.dtype == torch.float32),  # tries the test itself
    *((call, "cuda", offset) for call in CALLS for offset in (1, 3) if HERE),
]


@pytest.mark.parametrize(
    "call, device, offset", MISALIGNED, ids=[f"{call.id}-{d}-{o}" for call, d, o in MISALIGNED]
)
def test_misaligned(call: Call, device: str, offset: int) -> None:
    """Inputs that start anywhere a torch tensor may start."""
    inputs = call.inputs(device)
    moved = {name: misaligned(t, offset) for name, t in inputs.items()}
    close(call.results(moved), call.results(inputs))


@cuda
@pytest.mark.parametrize("side_stream", [False, True])
@over(call for call in CALLS if call.foreign and call.dtype != torch.bfloat16)
def test_cupy_in_cupy_out(call: Call, side_stream: bool) -> None:
    """In the kind they came in, on CuPy's current stream, without a copy."""
    cupy = pytest.importorskip("cupy")
    x = call.inputs()["x"]
    expected = call.run(x.cuda())
    array, late = cupy.asarray(x.numpy()), cupy.zeros(tuple(x.shape), x.numpy().dtype)
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True) if side_stream else cupy.cuda.Stream.null
    with stream:
        late[...] = array
        got = call.run(late)
    stream.synchronize()
    assert isinstance(got, cupy.ndarray)
    assert same_bits(torch.from_dlpack(got).cpu(), expected.cpu())
    assert bool((late == array).all())  # an input is never written to
