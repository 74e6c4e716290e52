"""The ops as a user calls them, and their peers: torch.softmax and topk; the entmax package.
All allocate their outputs. sparsemax and entmax15 of the package sort; its
bisection runs 24 times for 1.3."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import fastops
from fastops.softmax.relatives import reference

from ..core.case import DTYPES, OURS, PEER, Accuracy, Case, Workload
from ..core.env import cache_bytes
from ..core.pool import Pool
from ..core.timing import Call
from ..peers import entmax_package

ALPHAS = {"sparsemax": 2.0, "entmax15": 1.5, "entmax": 1.3}
OPS = {
    name: getattr(fastops, name.removesuffix("_backward"))
    for op in ("softmax_topk", *ALPHAS)
    for name in ([op] if op == "softmax_topk" else [op, f"{op}_backward"])
}
NOTE = "the entmax package"
MOST_SETS = 4
CHECKED_ELEMENTS = 1 << 17


def prepare(case: Case, pool: Pool, peers: tuple[str, ...]) -> Workload:
    """Buffers and calls of a case."""
    dtype = DTYPES[case.dtype]
    size = case.rows * case.n * dtype.itemsize
    sets = min(MOST_SETS, max(2, -(-2 * cache_bytes(case.device) // size)))
    xs = [pool.scores(case.shape, dtype, i) for i in range(sets)]
    if case.op == "softmax_topk":
        return _topk(int(case.variant.removeprefix("k=")), xs, size)
    op = case.op.removesuffix("_backward")
    if op != case.op:
        return _backward(op, xs, size)
    return _sparse(op, xs, size, "softmax" in peers)


def _topk(k: int, xs: list[Tensor], size: int) -> Workload:
    def theirs(x: Tensor):
        return torch.softmax(x, -1).topk(k, -1)

    calls = {
        OURS: [partial(fastops.softmax_topk, x, k) for x in xs],
        PEER: [partial(theirs, x) for x in xs],
    }
    x = _some_rows(xs[0])
    exact = torch.softmax(x.double(), -1).topk(k, -1).values
    traffic = size + xs[0].shape[0] * k * (xs[0].element_size() + 8)
    return Workload(
        calls, traffic,
        lambda: _accuracy(exact, fastops.softmax_topk(x, k)[0], theirs(x).values),
    )  # fmt: skip


def _ours(op: str, x: Tensor) -> Tensor:
    return fastops.entmax(x, ALPHAS[op]) if op == "entmax" else getattr(fastops, op)(x)


def _sparse(op: str, xs: list[Tensor], size: int, with_softmax: bool) -> Workload:
    theirs = entmax_package.forward(ALPHAS[op])
    calls: dict[str, list[Call]] = {
        OURS: [partial(_ours, op, x) for x in xs],
        PEER: [partial(theirs, x) for x in xs],
    }
    if with_softmax:
        calls["softmax"] = [partial(fastops.softmax, x) for x in xs]
    x = _some_rows(xs[0])
    exact = reference.entmax_reference(x.double(), ALPHAS[op])
    return Workload(
        calls, 2 * size, lambda: _accuracy(exact, _ours(op, x), theirs(x)), {PEER: NOTE}
    )


def _backward(op: str, xs: list[Tensor], size: int) -> Workload:
    """Through autograd on both sides, the forward's graph kept."""
    theirs = entmax_package.forward(ALPHAS[op])

    def calls_of(forward) -> list[Call]:
        calls = []
        for x in xs:
            leaf = x.detach().requires_grad_()
            y, grad = forward(leaf), x.flip(0)
            calls.append(partial(torch.autograd.grad, y, leaf, grad, retain_graph=True))
        return calls

    calls = {OURS: calls_of(partial(_ours, op)), PEER: calls_of(theirs)}
    x = _some_rows(xs[0])

    def gradient(forward, x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(forward(leaf), leaf, x.flip(0))[0]

    def verify() -> Accuracy:
        exact = gradient(lambda t: reference.entmax_reference(t, ALPHAS[op]), x.double())
        return _accuracy(exact, gradient(partial(_ours, op), x), gradient(theirs, x))

    return Workload(calls, 3 * size, verify, {PEER: NOTE})


def _some_rows(x: Tensor) -> Tensor:
    return x[: max(1, CHECKED_ELEMENTS // x.shape[-1])]


def _accuracy(exact: Tensor, ours: Tensor, peer: Tensor) -> Accuracy:
    def error(y: Tensor) -> float:
        off, size = (y.double() - exact).abs(), exact.abs().amax(-1)
        # The gradient of a row that is one-hot is 0.
        return (off.amax(-1) / size.clamp_min(1e-3 * size.max())).max().item()

    return Accuracy(error(ours), error(peer), torch.finfo(ours.dtype).eps / 2)
