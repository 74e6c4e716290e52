"""Derivatives of the merge ops. First ones run in the backward op, second ones differentiate the
reference. Matching and planning give integers and have none."""

import torch
from torch import Tensor
from torch.autograd import Function

from .._autograd import apply, differentiated, redispatch
from .._load import op as _op
from .reference import MODES, merge_reference

_MEAN, _SUM, _MAX, _MLERP = range(len(MODES))


class _Merge(Function):
    """Outputs: the merged tensors, the merged sizes and their logarithm."""

    @staticmethod
    def forward(ctx, run, map, offsets, perm, size, mode, *xs):
        ys, merged, log_merged = run(list(xs), map, offsets, perm, size, mode)
        ctx.mode, ctx.count = mode, len(xs)
        ctx.size_grad = ctx.needs_input_grad[4]
        if not ctx.size_grad:
            ctx.mark_non_differentiable(merged, log_merged)
        rows = (*xs, *ys) if mode in (_MAX, _MLERP) or ctx.size_grad else ()
        ctx.save_for_backward(map, offsets, perm, size, merged, *rows)
        return (*ys, merged, log_merged)

    @staticmethod
    def backward(ctx, *grads):
        map, offsets, perm, size, merged, *rows = ctx.saved_tensors
        *grads, grad_merged, grad_log = grads
        total = None
        if ctx.size_grad:
            known = torch.where(merged > 0, merged, 1)
            total = (grad_merged + torch.where(merged > 0, grad_log, 0) / known).contiguous()
        dxs, dsize = _op("merge_tokens_backward")(
            grads,
            rows[: ctx.count],
            rows[ctx.count :],
            map,
            offsets,
            perm,
            size,
            merged,
            total,
            ctx.mode,
            ctx.size_grad,
        )
        return None, None, None, None, dsize if ctx.size_grad else None, None, *dxs


def _stand_in(t: Tensor | None) -> Tensor | None:
    """t, to be differentiated by. Not t itself: one input may depend on another. Tied to t where t
    has a gradient, for derivatives of higher order."""
    if t is None:
        return None
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


class _MergeBackward(Function):
    @staticmethod
    def forward(
        ctx, run, map, offsets, perm, size, merged, grad_merged, mode, size_grad, count, *rows
    ):
        grads, xs, ys = rows[:count], rows[count : 2 * count], rows[2 * count :]
        dxs, dsize = run(
            list(grads), list(xs), list(ys), map, offsets, perm, size, merged, grad_merged, mode,
            size_grad,
        )  # fmt: skip
        ctx.mode, ctx.size_grad, ctx.count = mode, size_grad, count
        ctx.num_out, ctx.num_rows = offsets.shape[1] - 1, len(rows)
        ctx.save_for_backward(map, size, grad_merged, *grads, *xs)
        return (*dxs, dsize)

    @staticmethod
    def backward(ctx, *seconds):
        map, size, grad_merged, *rows = ctx.saved_tensors
        with torch.enable_grad():
            size, grad_merged = _stand_in(size), _stand_in(grad_merged)
            rows = [_stand_in(t) for t in rows]
            grads, kept = rows[: ctx.count], rows[ctx.count :]
            # Where x was not kept the result does not depend on it: any of its shape will do.
            xs = kept or [
                g.new_zeros(*g.shape[:-2], map.shape[1], g.shape[-1], requires_grad=True)
                for g in grads
            ]
            outs = [merge_reference(x, map, ctx.num_out, size, MODES[ctx.mode]) for x in xs]
            values, cotangents, wanted = [y for y, _ in outs], list(grads), list(xs)
            if ctx.size_grad:
                values.append(outs[0][1])
                cotangents.append(grad_merged)
                wanted.append(size)
            firsts = torch.autograd.grad(
                values, wanted, cotangents, create_graph=True, materialize_grads=True
            )
            pairs = [
                (f, s)
                for f, s in zip(firsts, seconds[: len(firsts)], strict=True)
                if f.requires_grad
            ]
            inputs = [t for t in (size, grad_merged, *rows) if t is not None]
            found = torch.autograd.grad(
                [f for f, _ in pairs],
                inputs,
                [s for _, s in pairs],
                materialize_grads=True,
                create_graph=True,
            )
        found = iter(found)
        dsize = None if size is None else next(found)
        dgrad_merged = None if grad_merged is None else next(found)
        rest = (None,) * (ctx.num_rows - len(rows))
        return (
            None, None, None, None, dsize, None, dgrad_merged, None, None, None, *found, *rest,
        )  # fmt: skip


class _Unmerge(Function):
    @staticmethod
    def forward(ctx, run, y, map, offsets, perm, residual):
        ctx.save_for_backward(map, offsets, perm)
        return run(y, map, offsets, perm, residual)

    @staticmethod
    def backward(ctx, grad):
        dy = None
        if ctx.needs_input_grad[1]:
            (dy,), _, _ = _op("merge_tokens")([grad], *ctx.saved_tensors, None, _SUM)
        return None, dy, None, None, None, grad if ctx.needs_input_grad[5] else None


def _merge(op):
    def kernel(keyset, xs, map, offsets, perm, size, mode):
        run = redispatch(op, keyset)
        if not differentiated(*xs, size):
            return run(xs, map, offsets, perm, size, mode)
        *ys, merged, log_merged = apply(_Merge, run, map, offsets, perm, size, mode, *xs)
        return ys, merged, log_merged

    return kernel


def _merge_backward(op):
    def kernel(
        keyset, grads, xs, ys, map, offsets, perm, size, merged, grad_merged, mode, size_grad
    ):
        run = redispatch(op, keyset)
        plan = map, offsets, perm, size, merged, grad_merged, mode, size_grad
        if not differentiated(*grads, *xs, size, grad_merged):
            return run(grads, xs, ys, *plan)
        *dxs, dsize = apply(_MergeBackward, run, *plan, len(grads), *grads, *xs, *ys)
        return dxs, dsize

    return kernel


def _unmerge(op):
    def kernel(keyset, y, map, offsets, perm, residual=None):
        run = redispatch(op, keyset)
        if not differentiated(y, residual):
            return run(y, map, offsets, perm, residual)
        return apply(_Unmerge, run, y, map, offsets, perm, residual)

    return kernel


KERNELS = {
    "merge_tokens": _merge,
    "merge_tokens_backward": _merge_backward,
    "unmerge_tokens": _unmerge,
}
"""Op -> what makes its autograd kernel."""
