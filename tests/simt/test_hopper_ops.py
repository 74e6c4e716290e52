"""Hopper's kernels, run on the host, beside those that take their place elsewhere: on equal inputs,
and in every schedule, that is every order of threads with copies that land late and early."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastops
from fastops import _load
from tests.attention import problems
from tests.nm.samples import judge, sparse
from tests.nm.samples import randn as activations
from tests.numerics import assert_ratio, exact, same_bits
from tests.simt.emulator import ORDERS, emulator, launched
from tests.softmax.oracle import Problem
from tests.softmax.samples import randn
from tests.softmax.test_backward import Backward

HALVES = (torch.float16, torch.bfloat16)


def finite(lse: Tensor) -> Tensor:
    """Without the -inf of rows that keep nothing."""
    return lse.masked_fill(lse == -torch.inf, 0)


@dataclass
class Case:
    """A call, the kernels that answer it on Hopper and elsewhere, and what judges its results."""

    hopper: set[str]
    elsewhere: set[str]
    run: Callable[[], list[Tensor]]
    check: Callable[[list[Tensor]], None]  # by the ratio rule, plain PyTorch being the peer
    exact: list[np.ndarray]
    sizes: list[np.ndarray]


def attention(dtype: torch.dtype, channels: int) -> Case:
    """Forward and backward of two heads that share keys: lists of five tiles and more by query,
    then by key."""
    shapes = ({"sq": 60, "skv": 700}, {"sq": 330, "skv": 60})
    made = [
        problems.Problem.make(
            dtype, heads=2, kv_heads=1, d=channels, kind="most", mask_heads=1, extras=False, **shape
        )
        for shape in shapes
    ]
    wide = [finite(t) for problem in made for t in problem.plain(torch.float64)]

    def check(got: list[Tensor]) -> None:
        problems.check(made[0], got[:5])
        problems.check(made[1], got[5:])

    backward = "attention backward{} by key", "attention backward{} by query"
    return Case(
        {"attention forward hopper", *(name.format(" hopper") for name in backward)},
        {"attention forward", *(name.format("") for name in backward)},
        lambda: [t for problem in made for t in problem.ours(64)],
        check,
        [exact(t) for t in wide],
        [np.full(t.shape, t.abs().max().item()) for t in wide],
    )


def products(dtype: torch.dtype) -> Case:
    """Nine tiles of inputs, a cluster of two blocks, ragged ends."""
    w, weight = sparse(200, 520, "2:4", dtype)
    x = activations(140, 520, dtype=dtype)
    return Case(
        {"nm wgmma_matmul"},
        {"nm sparse_matmul"},
        lambda: [fastops.nm_linear(x, weight)],
        lambda got: judge(got[0], x, w, None),
        [exact(F.linear(x.double(), w.double()))],
        [exact(x.double().abs() @ w.double().abs().t())],
    )


def softmax(dtype: torch.dtype, rows: int, n: int, hopper: str, elsewhere: set[str]) -> Case:
    """Forward and backward of rows that are no multiple of 16 bytes, five and more in each slot."""
    problem = Problem(x=randn(rows, n, dtype=dtype, spread=3), scale=-0.7)
    y = problem.peer("softmax")
    backward = Backward("softmax", problem, y, randn(rows, n, dtype=dtype, key=3))
    gradient, size = backward.exact()

    def check(got: list[Tensor]) -> None:
        problem.check("softmax", got[0])
        backward.check(got[1])

    return Case(
        {f"softmax {hopper}"},
        {f"softmax {name}" for name in elsewhere},
        lambda: [torch.ops.fastops.softmax(problem.x, [1], scale=-0.7), backward.run()],
        check,
        [problem.exact("softmax"), gradient],
        [problem.size("softmax"), size],
    )


CASES: dict[str, Callable[[torch.dtype], Case]] = {
    "attention 64": lambda dtype: attention(dtype, 64),
    "attention 128": lambda dtype: attention(dtype, 128),
    "2:4 products": products,
    "rings": lambda dtype: softmax(dtype, 1200, 197, "ring", {"rows"}),
    "clusters": lambda dtype: softmax(dtype, 6, 72_001, "cluster", {"stream", "split"}),
}


@pytest.fixture(autouse=True)
def one_sm() -> Iterator[None]:
    """Few blocks at a time, so that little work makes each go round often."""
    emulator().simt_set_device(1, 9, 0)
    yield
    emulator().simt_set_device(4, 9, 0)
    emulator().simt_configure(0, 0, 1)


def results(case: Case, kernels: set[str]) -> list[Tensor]:
    launched()
    got = case.run()
    names = launched()
    assert names >= kernels and not names & ((case.hopper | case.elsewhere) - kernels), names
    return got


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", CASES)
def test_as_exact_as_elsewhere(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both against plain PyTorch; then Hopper's error is at most twice that of the others, plus a
    rounding."""
    case = CASES[name](dtype)
    monkeypatch.setenv("FASTOPS_SM90", "0")
    others = results(case, case.elsewhere)
    monkeypatch.setenv("FASTOPS_SM90", "1")
    got = results(case, case.hopper)
    case.check(others)
    case.check(got)
    for ours, other, reference, size in zip(got, others, case.exact, case.sizes, strict=True):
        assert_ratio(finite(ours), reference, finite(other), size=size)


def test_switched_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["rings"](torch.float16)
    default = case.hopper if _load.build_record()["hopper_by_default"] else case.elsewhere
    monkeypatch.delenv("FASTOPS_SM90", raising=False)
    results(case, default)
    for value, kernels in (("1", case.hopper), ("0", case.elsewhere), ("", default)):
        monkeypatch.setenv("FASTOPS_SM90", value)
        results(case, kernels)


@pytest.mark.parametrize("name", [name for name in CASES if name != "attention 128"])
def test_every_schedule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits in all six."""
    monkeypatch.setenv("FASTOPS_SM90", "1")
    case = CASES[name](torch.float16)
    every = []
    for order in ORDERS.values():
        for early in (0, 1):
            emulator().simt_configure(order, early, 7)
            every.append(results(case, case.hopper))
    case.check(every[0])
    for other in every[1:]:
        assert all(map(same_bits, every[0], other))
