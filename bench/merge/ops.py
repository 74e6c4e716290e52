"""The ops as they are called, and as the public algorithm does them in plain PyTorch.

The peer is ToMe (tomesd for Stable Diffusion) restated call for call in bench/peers/tome.py, under
no_grad as a user would run it, with what can be made beforehand made beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import fastops
from fastops.merge.reference import merge_reference, unmerge_reference

from ..core.case import DTYPES, OURS, PEER, Accuracy, Case, Workload
from ..core.ceilings import copier
from ..core.env import cache_bytes
from ..core.pool import Pool
from ..core.timing import Call
from ..peers import compiled, tomesd_package
from ..peers import tome as peer
from .cases import MODELS, Model

MOST_SETS = 4


class Inputs:
    """One buffer set: tokens, metric and sizes, and a plan each way where the plan is given."""

    def __init__(self, case: Case, model: Model, pool: Pool, index: int) -> None:
        dtype = DTYPES[case.dtype]
        batch, n, _ = case.shape
        self.x = pool.scores(case.shape, dtype, index)
        self.metric = self.x
        if model.suite == "vit":
            shape = (batch, n, model.metric)
            self.metric = pool.empty(shape, dtype, index, "metric")
            generator = torch.Generator(device=self.x.device).manual_seed(index)
            self.metric.normal_(generator=generator)
        self.size = torch.ones(batch, n, 1, device=self.x.device)
        self.model, self.pool, self.index = model, pool, index


def _match(i: Inputs) -> fastops.MergePlan:
    return fastops.match_tokens(i.metric, r=i.model.r, class_token=True)


def _match_merge(i: Inputs) -> dict[str, Call]:
    def ours() -> tuple:
        return fastops.merge_tokens(i.x, _match(i), size=i.size)

    def theirs() -> tuple:
        merge, _ = peer.tome(i.metric, i.model.r, class_token=True)
        return peer.weighted(merge, i.x, i.size.to(i.x.dtype))

    return {OURS: ours, PEER: theirs, "compile": compiled.tome(i.metric, i.x, i.size, i.model.r)}


def _merge(i: Inputs) -> dict[str, Call]:
    plan, (merge, _) = _match(i), peer.tome(i.metric, i.model.r, class_token=True)
    size, own = i.size.to(i.x.dtype), i.size[..., 0].contiguous()
    batch, n, c = i.x.shape
    first = torch.arange(batch, device=i.x.device)[:, None] * n
    index, starts = (plan.perm + first).flatten(), (plan.offsets[:, :-1] + first).flatten()
    weights, rows = own.flatten().to(i.x.dtype), i.x.view(-1, c)
    return {
        OURS: partial(fastops.merge_tokens, i.x, plan, size=own),
        PEER: partial(peer.weighted, merge, i.x, size),
        # The sums of weighted rows, with everything else ready: less than the job.
        "embedding_bag": lambda: torch.nn.functional.embedding_bag(
            index, rows, starts, mode="sum", per_sample_weights=weights
        ),
    }


def _merge_out(i: Inputs) -> dict[str, Call]:
    """Into outputs made beforehand, to be held against a copy."""
    calls = _merge(i)
    plan, size = _match(i), i.size[..., 0].contiguous()
    shape = (i.x.shape[0], plan.num_out, i.x.shape[-1])
    y = i.pool.empty(shape, i.x.dtype, i.index)
    merged, logs = (torch.empty(shape[:2], device=i.x.device) for _ in range(2))
    op = torch.ops.fastops.merge_tokens.out
    calls[OURS] = lambda: op([i.x], *plan[:3], size, 0, out=[y], size_out=merged, log_size_out=logs)
    del calls["embedding_bag"]
    if i.x.device.type == "cpu":
        copy, _ = copier()
        threads = torch.get_num_threads()
        calls["copy"] = lambda: copy(y, i.x.view(-1)[: y.numel()], threads)
    return calls


def _merge_unmerge_grad(i: Inputs) -> dict[str, Call]:
    """merge by sizes, unmerge, and back, given the plan; sizes need no gradient."""
    plan, (merge, unmerge) = _match(i), peer.tome(i.metric, i.model.r, class_token=True)
    size, own = i.size.to(i.x.dtype), i.size[..., 0].contiguous()
    x = i.x.detach().requires_grad_()
    grad = i.pool.empty(i.x.shape, i.x.dtype, i.index, "grad").fill_(1)

    def ours() -> Tensor:
        y, _, _ = fastops.merge_tokens(x, plan, size=own)
        return torch.autograd.grad(fastops.unmerge_tokens(y, plan), x, grad)[0]

    def theirs() -> Tensor:
        y, _ = peer.weighted(merge, x, size)
        return torch.autograd.grad(unmerge(y), x, grad)[0]

    return {OURS: ours, PEER: theirs}


def there_and_back(x: Tensor, r: int) -> dict[str, Call]:
    """x [B, H W, C] of a square image."""
    side = int(x.shape[1] ** 0.5)
    draw = torch.Generator()

    def ours() -> Tensor:
        plan = fastops.match_tokens(
            x, r=r, partition="grid", grid=(side, side), generator=draw.manual_seed(1)
        )
        return fastops.unmerge_tokens(fastops.merge_tokens(x, plan), plan)

    def theirs(match: Callable) -> Tensor:
        merge, unmerge = match(x, side, side, 2, 2, r, False, generator=draw.manual_seed(1))
        return unmerge(merge(x))

    calls = {OURS: ours, PEER: partial(theirs, peer.tomesd)}
    if not tomesd_package.why_missing():
        calls["tomesd"] = partial(theirs, tomesd_package.match())
    return calls


OPS: dict[str, Callable[[Inputs], dict[str, Call]]] = {
    "match_merge": _match_merge,
    "merge": _merge,
    "merge_out": _merge_out,
    "merge_unmerge_grad": _merge_unmerge_grad,
    "merge_there_and_back": lambda i: there_and_back(i.x, i.model.r),
}


def prepare(case: Case, pool: Pool, peers: tuple[str, ...]) -> Workload:
    """Buffers and calls of a case."""
    model = MODELS[case.variant]
    batch, n, c = case.shape
    row = c * DTYPES[case.dtype].itemsize
    moved = batch * (2 * n - model.r) * row
    if model.suite == "diffusion":
        moved = batch * (n + (n - model.r)) * row * 2
    elif case.op == "merge_unmerge_grad":
        moved *= 4
    elif case.op == "match_merge":
        moved += batch * n * model.metric * DTYPES[case.dtype].itemsize
    sets = min(MOST_SETS, max(2, -(-2 * cache_bytes(case.device) // moved)))
    inputs = [Inputs(case, model, pool, index) for index in range(sets)]
    each = [OPS[case.op](i) for i in inputs]
    calls = {
        name: [_no_grad(calls[name], case) for calls in each]
        for name in each[0]
        if name in (OURS, PEER) or name in peers
    }
    return Workload(calls, moved, partial(_accuracy, case, inputs[0], calls))


def _no_grad(call: Call, case: Case) -> Call:
    return call if case.op == "merge_unmerge_grad" else torch.no_grad()(call)


# ---- errors -------------------------------------------------------------------------------------


def _accuracy(case: Case, i: Inputs, calls: dict[str, list[Call]]) -> Accuracy:
    """Ours and PyTorch's against float64 with the same plan: which tokens merge is for the tests to
    judge, near-equal similarities may be decided either way."""
    rounding = torch.finfo(i.x.dtype).eps / 2
    batch = slice(0, 1)
    x, one = i.x[batch].clone(), i.size[batch, :, 0]
    if case.op == "merge_there_and_back":
        side = int(x.shape[1] ** 0.5)
        plan = fastops.match_tokens(
            x, r=i.model.r, partition="grid", grid=(side, side),
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        ours = fastops.unmerge_tokens(fastops.merge_tokens(x, plan), plan)
        index = plan.map[..., None].long().expand(x.shape)
        means = x.new_zeros(1, plan.num_out, x.shape[-1]).scatter_reduce(
            1, index, x, "mean", include_self=False
        )
        wide = (
            x.double()
            .new_zeros(means.shape)
            .scatter_reduce(1, index, x.double(), "mean", include_self=False)
        )
        return _errors(
            ours, unmerge_reference(means, plan.map), unmerge_reference(wide, plan.map), rounding
        )
    plan = fastops.match_tokens(i.metric[batch], r=i.model.r, class_token=True)
    ours = fastops.merge_tokens(x, plan, size=one)[0]
    plain, _ = merge_reference(x, plan.map, plan.num_out, one)
    wide, _ = merge_reference(x.double(), plan.map, plan.num_out, one.double())
    return _errors(ours, plain, wide, rounding)


def _errors(ours: Tensor, peer: Tensor, wide: Tensor, rounding: float) -> Accuracy:
    scale = wide.abs().amax(-1, keepdim=True).clamp_min(1e-300)

    def error(t: Tensor) -> float:
        return ((t.double() - wide).abs() / scale).max().item()

    return Accuracy(error(ours), error(peer), rounding)
