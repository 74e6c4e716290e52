"""The ops of the family as they are called, here and in torch, and the buffers they work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

import fastops

from ..core.case import DTYPES, OURS, PEER, Accuracy, Case, Workload
from ..core.ceilings import copier
from ..core.env import cache_bytes
from ..core.pool import Pool
from ..core.timing import Call, Effort, measure
from ..peers import compiled, triton_softmax

ops, aten = torch.ops.fastops, torch.ops.aten


@dataclass(frozen=True)
class Inputs:
    """One buffer set of a case. For backward ops `x` is the saved output."""

    x: torch.Tensor
    dim: int
    out: torch.Tensor
    peer_out: torch.Tensor
    grad: torch.Tensor | None = None
    mask: torch.Tensor | None = None  # broadcasts to x; True takes part
    excluded: torch.Tensor | None = None  # its inverse, made beforehand: torch's way needs it
    scratch: torch.Tensor | None = None
    ours: dict = field(default_factory=dict)  # the mask as our op takes it


@dataclass(frozen=True)
class Op:
    """An op as we call it, as torch does, and as a formula.

    `formula` is plain PyTorch on (x, grad, mask) over the last dim. In float64 it is the reference;
    under torch.compile it is a peer.
    """

    ours: Callable[[Inputs], Call]
    torch: Callable[[Inputs], dict[str, Call]]  # the ways to do it; the fastest becomes the peer
    formula: Callable[..., torch.Tensor]
    reads: int = 1
    writes: int = 1
    kind: str = "forward"


def masked_ways(i: Inputs) -> dict[str, Call]:
    """The ways people mask a softmax, with every buffer they need made beforehand."""
    low = torch.tensor(-torch.inf, dtype=i.x.dtype, device=i.x.device)

    def fill_then_softmax() -> None:
        aten.masked_fill.Scalar_out(i.x, i.excluded, -torch.inf, out=i.scratch)
        aten._softmax.out(i.scratch, i.dim, False, out=i.peer_out)

    def where_then_softmax() -> None:
        torch.where(i.mask, i.x, low, out=i.scratch)
        aten._softmax.out(i.scratch, i.dim, False, out=i.peer_out)

    return {"masked_fill + softmax": fill_then_softmax, "where + softmax": where_then_softmax}


OPS = {
    "softmax": Op(
        ours=lambda i: partial(ops.softmax.out, i.x, [i.dim], out=i.out),
        torch=lambda i: {
            "_softmax.out": partial(aten._softmax.out, i.x, i.dim, False, out=i.peer_out)
        },
        formula=lambda x, grad, mask: torch.softmax(x, -1),
    ),
    "log_softmax": Op(
        ours=lambda i: partial(ops.log_softmax.out, i.x, [i.dim], out=i.out),
        torch=lambda i: {
            "_log_softmax.out": partial(aten._log_softmax.out, i.x, i.dim, False, out=i.peer_out)
        },
        formula=lambda x, grad, mask: torch.log_softmax(x, -1),
    ),
    "logsumexp": Op(
        ours=lambda i: partial(ops.logsumexp.out, i.x, [i.dim], out=i.out),
        torch=lambda i: {
            "logsumexp.out": partial(aten.logsumexp.out, i.x, [i.dim], False, out=i.peer_out)
        },
        formula=lambda x, grad, mask: torch.logsumexp(x, -1),
        writes=0,
        kind="reduction",
    ),
    "softmax_backward": Op(
        ours=lambda i: partial(ops.softmax_backward.out, i.grad, i.x, [i.dim], out=i.out),
        torch=lambda i: {
            "_softmax_backward_data.out": partial(
                aten._softmax_backward_data.out,
                i.grad,
                i.x,
                i.dim,
                i.x.dtype,
                grad_input=i.peer_out,
            )
        },
        formula=lambda y, grad, mask: y * (grad - (y * grad).sum(-1, keepdim=True)),
        reads=2,
        kind="backward",
    ),
    "log_softmax_backward": Op(
        ours=lambda i: partial(ops.log_softmax_backward.out, i.grad, i.x, [i.dim], out=i.out),
        torch=lambda i: {
            "_log_softmax_backward_data.out": partial(
                aten._log_softmax_backward_data.out, i.grad, i.x, i.dim, i.x.dtype, out=i.peer_out
            )
        },
        formula=lambda y, grad, mask: grad - y.exp() * grad.sum(-1, keepdim=True),
        reads=2,
        kind="backward",
    ),
    "masked_softmax": Op(
        ours=lambda i: partial(ops.softmax.out, i.x, [i.dim], **i.ours, out=i.out),
        torch=masked_ways,
        formula=lambda x, grad, mask: torch.softmax(x.masked_fill(~mask, -torch.inf), -1),
        kind="masked",
    ),
}


# ---- a case made ready to run -------------------------------------------------------------------


def prepare(case: Case, pool: Pool, peers: tuple[str, ...]) -> Workload:
    """Buffers and calls of a case; the torch peer is the fastest of torch's ways to do it."""
    op, dtype = OPS[case.op], DTYPES[case.dtype]
    moved = (op.reads + op.writes) * case.rows * case.n * dtype.itemsize
    # Enough sets to overflow the last-level cache twice, so that no call finds its data there.
    sets = 1 if case.warm else min(8, max(2, -(-2 * cache_bytes(case.device) // moved)))
    inputs = [_inputs(case, pool, i) for i in range(sets)]
    if case.suite == "overhead":
        return _overhead_workload(case, inputs[0])

    ways = [op.torch(i) for i in inputs]
    best, notes = _fastest(ways, case.device), {}
    if len(ways[0]) > 1:
        notes[PEER] = best
    calls: dict[str, list[Call]] = {
        OURS: [op.ours(i) for i in inputs],
        PEER: [way[best] for way in ways],
    }
    last = case.dim % len(case.shape) == len(case.shape) - 1
    if "copy" in peers and op.writes and op.reads == 1 and not case.warm:
        calls["copy"] = [_copy(case, i) for i in inputs]
    if "compile" in peers:
        calls["compile"] = [compiled.softmax_like(op.formula, i) for i in inputs]
    if "triton" in peers and case.op == "softmax":
        if why := triton_softmax.why_not(case.n, last):
            notes["triton"] = why
        else:
            calls["triton"] = [partial(triton_softmax.softmax, i.x, i.out) for i in inputs]
    return Workload(
        calls, _traffic(op, inputs[0]), partial(_accuracy, case, op, inputs[0], calls), notes
    )


def _inputs(case: Case, pool: Pool, index: int) -> Inputs:
    op, dtype = OPS[case.op], DTYPES[case.dtype]
    x = pool.scores(case.shape, dtype, index)
    out = peer_out = pool.empty(case.shape, dtype, index)
    if op.kind == "reduction":
        rows = [size for d, size in enumerate(case.shape) if d != case.dim % len(case.shape)]
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        out = pool.empty(rows, accumulator, index, "lse")
        peer_out = pool.empty(rows, dtype, index, "peer lse")
    grad = None
    if op.kind == "backward":
        grad, saved = x, pool.empty(case.shape, dtype, index, "saved")
        forward = aten._log_softmax if case.op.startswith("log") else aten._softmax
        # The saved output belongs to other scores than the gradient: reversed along the rows.
        x = forward.out(grad.flip(0), case.dim, False, out=saved)
    if op.kind != "masked":
        return Inputs(x, case.dim, out, peer_out, grad)
    mask, ours = _mask(case, x.device)
    scratch = pool.empty(case.shape, dtype, index, "scratch")
    return Inputs(x, case.dim, out, peer_out, None, mask, ~mask, scratch, ours)


def _mask(case: Case, device: torch.device) -> tuple[torch.Tensor, dict]:
    """The mask for torch, and the arguments by which our op is told the same."""
    generator = torch.Generator(device=device).manual_seed(1)
    n = case.n
    if case.variant == "causal":
        return torch.ones(n, n, dtype=torch.bool, device=device).tril(), {"causal": 1}
    if case.variant == "mask":
        mask = torch.rand(case.shape, generator=generator, device=device) < 0.75
        mask[..., 0] = True
        return mask, {"mask": mask}
    shape = (*case.shape[:-2], 1, 1)
    lengths = torch.randint(n // 2, n + 1, shape, generator=generator, device=device)
    mask = torch.arange(n, device=device) < lengths
    return mask, ({"lengths": lengths} if case.variant == "lengths" else {"mask": mask})


def _traffic(op: Op, i: Inputs) -> int:
    """Bytes that must move. Scores behind a causal edge or a length need not be read."""
    full = i.x.numel() * i.x.element_size()
    reads = float(op.reads)
    if "mask" in i.ours:
        reads += i.mask.numel() / full
    elif i.ours:
        reads *= i.mask.float().mean().item()
    small = i.out.numel() * i.out.element_size() if not op.writes else 0
    return int((reads + op.writes) * full) + small


def _fastest(ways: list[dict[str, Call]], device: str) -> str:
    if len(ways[0]) == 1:
        return next(iter(ways[0]))
    calls = {name: [way[name] for way in ways] for name in ways[0]}
    times = measure(calls, device, Effort(seconds=0, min_rounds=3), cold=True)
    return min(times, key=lambda name: times[name].median)


def _copy(case: Case, i: Inputs) -> Call:
    if case.device != "cpu":
        return lambda: i.out.copy_(i.x)
    copy, _ = copier()
    return lambda: copy(i.out, i.x, case.threads)


def _overhead_workload(case: Case, i: Inputs) -> Workload:
    """The public functions, as a user calls them; without out= both allocate."""
    if case.variant == "(x)":
        calls = {OURS: partial(fastops.softmax, i.x), PEER: partial(torch.softmax, i.x, -1)}
    else:
        calls = {
            OURS: partial(fastops.softmax, i.x, out=i.out),
            PEER: partial(aten._softmax.out, i.x, -1, False, out=i.out),
        }
    op = OPS["softmax"]
    checked = {OURS: [op.ours(i)], PEER: list(op.torch(i).values())}
    return Workload(
        {name: [call] for name, call in calls.items()},
        _traffic(op, i),
        partial(_accuracy, case, op, i, checked),
        host=True,
    )


# ---- errors -------------------------------------------------------------------------------------

CHECKED_ELEMENTS = 1 << 18


def _accuracy(case: Case, op: Op, i: Inputs, calls: dict[str, list[Call]]) -> Accuracy:
    """Errors over whole rows, spread evenly over the tensor from its first row to its last."""
    count = max(1, min(case.rows, CHECKED_ELEMENTS // case.n))
    picks = torch.linspace(0, case.rows - 1, count, dtype=torch.float64).round().long()
    row_shape = i.x.movedim(i.dim, -1).shape[:-1]
    index = torch.unravel_index(picks.to(i.x.device), row_shape)

    def sample(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        if tensor.dim() == len(row_shape) and op.kind == "reduction":
            return tensor[index].unsqueeze(-1)
        return tensor.expand(i.x.shape).movedim(i.dim, -1)[index]

    def error(name: str, out: torch.Tensor) -> float:
        calls[name][0]()
        off = (sample(out).double() - exact).abs()
        return (off.amax(-1) / exact.abs().amax(-1).clamp_min(1e-300)).max().item()

    x, grad = (t if t is None else t.double() for t in (sample(i.x), sample(i.grad)))
    exact = op.formula(x, grad, sample(i.mask))
    if op.kind == "reduction":
        exact = exact.unsqueeze(-1)
    rounding = torch.finfo(i.peer_out.dtype).eps / 2
    return Accuracy(error(OURS, i.out), error(PEER, i.peer_out), rounding)
