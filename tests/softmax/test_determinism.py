"""The same bits every time, on any number of threads."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.numerics import CARRIED, EMULATED, FLOATS, same_bits
from tests.softmax.oracle import ALGORITHMS, KINDS, op
from tests.softmax.samples import booleans, randn


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def every_op(x: Tensor, dim: int, algorithm: int = 0, **args) -> list[Tensor]:
    """The outputs of each forward and backward op on x."""
    results = []
    for kind in KINDS:
        y, lse = op(f"{kind}_lse")(x, [dim], algorithm=algorithm, **args)
        results += [y, lse, op(f"{kind}_backward")(x, y, [dim], grad_lse=lse, **args)]
    lse = op("logsumexp")(x, [dim], algorithm=algorithm, **args)
    return [*results, lse, op("logsumexp_backward")(lse, x, lse, [dim], **args)]


@pytest.mark.parametrize(
    "shape, dim, repeats",
    [
        ((64, 1000), -1, 1000),
        ((1, 100_003), -1, 1000),
        ((3, 500, 21), 1, 1000),
        ((2, 1_100_003), -1, 40),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeats(dtype, shape, dim, repeats, device, threads):
    """A race, an uninitialised read or a sum in scheduling order would show sooner or later. Each
    repeat runs on another allocation, so at another alignment to the cache."""
    threads(2)
    x = randn(*shape, dtype=dtype, device=device)
    first = op("softmax_lse")(x, [dim])
    dx = op("softmax_backward")(x, first[0], [dim])
    held = []
    for i in range(repeats):
        held = [*held[-3:], torch.empty(1 + 17 * (i % 13), device=device)]
        again = op("softmax_lse")(x, [dim])
        assert all(map(same_bits, first, again)), i
        assert same_bits(dx, op("softmax_backward")(x, first[0], [dim])), i


@pytest.mark.isa
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "shape, dim",
    [((1, 5), -1), ((33, 700), -1), ((1, 40_001), -1), ((1, 300_001), -1), ((2, 700_001), -1),
     ((3, 150_001), -1), ((100_001, 3), -1), ((5, 77, 130), 1), ((2, 30_001, 3), 1),
     ((300_001, 1), 0), ((3, 77, 161), 1), ((1, 5000, 130), 1)],
)  # fmt: skip
def test_threads(shape, dim, dtype, device, threads):
    """Work is split by size, never by how many threads there are."""
    x = randn(*shape, dtype=dtype, device=device, spread=2)
    mask = booleans(*shape, device=device)
    for algorithm, args in itertools.product(ALGORITHMS.values(), ({}, {"mask": mask})):
        results = []
        for count in (1, 2, 3):
            threads(count)
            results.append(every_op(x, dim, algorithm, **args))
        for one, two, three in zip(*results, strict=True):
            assert same_bits(one, two) and same_bits(one, three)


@pytest.mark.isa
def test_a_row_does_not_depend_on_its_neighbours(device):
    """Row i alone has the bits it has in the batch: rows that share a vector stay apart."""
    for dtype, n in itertools.product(FLOATS, (1, 3, 8, 17, 60, 130, 197, 300, 577)):
        x = randn(23, n, dtype=dtype, device=device)
        for kind in KINDS:
            whole = op(kind)(x, [-1])
            for i in (0, 7, 22):
                torch.testing.assert_close(
                    whole[i], op(kind)(x[i], [-1]), rtol=4 * torch.finfo(dtype).eps, atol=0
                )
            dx = op(f"{kind}_backward")(x, whole, [-1])
            for i in (0, 7, 22):
                alone = op(f"{kind}_backward")(x[i], whole[i], [-1])
                torch.testing.assert_close(
                    dx[i], alone, rtol=0, atol=8 * torch.finfo(dtype).eps * x.abs().max().item()
                )
            by_address = EMULATED or CARRIED or device == "cuda"
            shuffled = shuffle(23, 16 // dtype.itemsize if by_address else 1)
            assert same_bits(op(kind)(x[shuffled], [-1]), whole[shuffled])
            again = op(f"{kind}_backward")(x[shuffled], whole[shuffled], [-1])
            assert same_bits(again, dx[shuffled])


def shuffle(rows: int, period: int) -> Tensor:
    """A permutation of rows that keeps each one's number modulo `period`: the CUDA kernels cut a
    row at 16-byte boundaries of its address, so that its bits may depend on its alignment."""
    generator = torch.Generator().manual_seed(1)
    order = torch.arange(rows)
    for first in range(min(period, rows)):
        members = order[first::period].clone()
        order[first::period] = members[torch.randperm(len(members), generator=generator)]
    return order
