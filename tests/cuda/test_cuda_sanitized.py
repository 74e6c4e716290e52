"""A short list for compute-sanitizer, under which a kernel takes hundreds of times as long: each
function in its variants, forward and backward, in two dtypes. `bench.gpu --part sanitizers` runs it
under each tool; initcheck needs inputs that were copied from the host, as these are."""

from __future__ import annotations

import torch

from tests.cuda.calls import CALLS, Call
from tests.cuda.test_cuda_launch import close, cuda, over

DTYPES = (torch.float32, torch.bfloat16)
LONGEST = 50_000  # elements


def short(call: Call) -> bool:
    return call.dtype in DTYPES and all(t.numel() <= LONGEST for t in call.inputs().values())


@cuda
@over(filter(short, CALLS))
def test_sanitized(call: Call) -> None:
    results = call.results(call.inputs("cuda"))
    torch.cuda.synchronize()
    close(results, call.results(call.inputs()))
