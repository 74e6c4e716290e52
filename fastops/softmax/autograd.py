"""Derivatives of the softmax ops, backward and forward, to any order.

First derivatives run in the backward ops; where the backward pass is itself differentiated, and in
forward mode, the formulas of formulas.py run in their place.

What the functions at the end return is registered for the Autograd key: such a kernel gets the
dispatcher's keyset, and calls the op below it.
"""

from functools import partial, wraps
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd import Function

from .._autograd import apply as _apply
from .._autograd import differentiated as _differentiated
from .._autograd import redispatch as _redispatch
from .._load import op as _op
from . import formulas
from .reference import participation


def _below(op, *args, **kwargs):
    """The op without its autograd kernel, which, being Python, costs more than a small softmax."""
    with torch._C._AutoDispatchBelowAutograd():
        return op._op(*args, **kwargs)


def through_dispatcher() -> bool:
    """Whether compilers or torch.func transforms are to see the op, and so must be asked first."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def call(op, tensors: tuple[Tensor | None, ...], *args, **kwargs):
    """``op(*args, **kwargs)``; `tensors` are those among the arguments that can have a gradient."""
    if through_dispatcher() or _differentiated(*tensors):
        return op(*args, **kwargs)
    return _below(op, *args, **kwargs)


def call_normalize(op, kind: str, x, dim, *, bias, row_scale, **kwargs):
    """An op of softmax or log_softmax by the shortest way that keeps derivatives."""
    if through_dispatcher():
        return op(x, dim, bias=bias, row_scale=row_scale, **kwargs)
    if _differentiated(x, bias, row_scale):
        return _Normalize.apply(partial(_below, op), x, bias, row_scale, kind, dim, kwargs)
    return _below(op, x, dim, bias=bias, row_scale=row_scale, **kwargs)


def call_logsumexp(op, x, dim, keepdim, *, bias, row_scale, **kwargs):
    """The op of logsumexp by the shortest way that keeps derivatives."""
    if through_dispatcher():
        return op(x, dim, keepdim, bias=bias, row_scale=row_scale, **kwargs)
    if _differentiated(x, bias, row_scale):
        return _LogSumExp.apply(partial(_below, op), x, bias, row_scale, dim, keepdim, kwargs)
    return _below(op, x, dim, keepdim, bias=bias, row_scale=row_scale, **kwargs)


def _nested_forward_mode(jvp):
    """torch runs jvp with forward mode off, which would lose the tangents of a jvp around it."""

    @wraps(jvp)
    def wrapped(ctx, *args):
        with forward_ad._set_fwd_grad_enabled(True):
            return jvp(ctx, *args)

    return wrapped


class _ScoreFunction(Function):
    """What the two functions below share. `apply` is given (run, x, bias, row_scale, ...): the
    tensors that can have a gradient are inputs 1, 2 and 3."""

    @staticmethod
    def save(ctx, tensors: dict[str, Tensor | None], x, bias, **attributes: Any) -> None:
        ctx.names = tuple(tensors)
        ctx.save_for_backward(*tensors.values())
        ctx.save_for_forward(*tensors.values())
        ctx.set_materialize_grads(False)
        ctx.x_dtype = x.dtype
        ctx.bias_like = None if bias is None else (bias.shape, bias.dtype)
        for name, value in attributes.items():
            setattr(ctx, name, value)

    @staticmethod
    def saved(ctx) -> dict[str, Tensor | None]:
        return dict(zip(ctx.names, ctx.saved_tensors, strict=True))

    @staticmethod
    def primals(ctx) -> dict[str, Tensor | None]:
        """Saved tensors without their tangents, which jvp is given apart."""
        return {
            name: t if t is None else forward_ad.unpack_dual(t).primal
            for name, t in _ScoreFunction.saved(ctx).items()
        }

    @staticmethod
    def input_gradients(ctx, ds, x, row_scale, dims):
        """Gradients of x, bias and row_scale from ds, each where it is needed."""
        need_x, need_bias, need_scale = ctx.needs_input_grad[1:4]
        dx = dbias = dscale = None
        if need_x:
            dx = formulas.to_x(ds, ctx.scale, row_scale, dims, ctx.x_dtype)
        if need_bias:
            shape, dtype = ctx.bias_like
            dbias = ds.sum_to_size(shape).to(dtype)
        if need_scale:
            # An infinite x has probability 0 (or its whole row is NaN already): it adds nothing.
            finite = torch.where(x.isfinite(), x, 0.0)
            dscale = (
                formulas.sum_over(ds * finite, dims, keepdim=row_scale.ndim == x.ndim) * ctx.scale
            )
            dscale = dscale.sum_to_size(row_scale.shape)
        return dx, dbias, dscale

    @staticmethod
    def score_tangent(ctx, t, valid, dims, dx, dbias, dscale) -> Tensor:
        """The tangent of the scores in the accumulation dtype, 0 where excluded."""
        ds = torch.zeros((), dtype=ctx.acc, device=valid.device)
        if dx is not None:
            ds = ds + formulas.to_x(dx.to(ctx.acc), ctx.scale, t["row_scale"], dims, ctx.acc)
        if dscale is not None:
            finite = torch.where(t["x"].isfinite(), t["x"], 0.0).to(ctx.acc)
            ds = ds + formulas.to_x(finite, ctx.scale, dscale, dims, ctx.acc)
        if dbias is not None:
            ds = ds + dbias.to(ctx.acc)
        return torch.where(valid, ds, 0.0)


class _Normalize(_ScoreFunction):
    """softmax, log_softmax and their _lse forms."""

    @staticmethod
    def forward(ctx, run, x, bias, row_scale, kind, dim, kwargs):
        result = run(x, dim, bias=bias, row_scale=row_scale, **kwargs)
        ctx.with_lse = isinstance(result, tuple)
        y = result[0] if ctx.with_lse else result
        scale_wanted = ctx.needs_input_grad[3] or forward_ad._current_level >= 0
        tensors = {
            "y": y,
            "x": x if row_scale is not None and scale_wanted else None,
            "row_scale": row_scale,
            "mask": kwargs["mask"],
            "lengths": kwargs["lengths"],
        }
        _ScoreFunction.save(
            ctx,
            tensors,
            x,
            bias,
            kind=kind,
            dim=dim,
            acc=formulas.accumulation_dtype(x.dtype, y.dtype),
            causal=kwargs["causal"],
            scale=kwargs["scale"],
            zero_masked_rows=kwargs["zero_masked_rows"],
        )
        return result

    @staticmethod
    def backward(ctx, grad, grad_lse=None):
        if grad is None and grad_lse is None:
            return (None,) * 7
        t = _ScoreFunction.saved(ctx)
        y, dims = t["y"], formulas.dims_of(t["y"], ctx.dim)
        if grad is None:
            grad = y.new_zeros(()).expand(y.shape)

        def backward_op(scale, row_scale, dtype):
            return call(
                _op(f"{ctx.kind}_backward"),
                (grad, y, row_scale, grad_lse),
                grad,
                y,
                ctx.dim,
                mask=t["mask"],
                lengths=t["lengths"],
                causal=ctx.causal,
                scale=scale,
                row_scale=row_scale,
                grad_lse=grad_lse,
                zero_masked_rows=ctx.zero_masked_rows,
                dtype=dtype,
            )

        if any(ctx.needs_input_grad[2:4]):
            ds = backward_op(1.0, None, ctx.acc)
            gradients = _ScoreFunction.input_gradients(ctx, ds, t["x"], t["row_scale"], dims)
        else:
            gradients = (backward_op(ctx.scale, t["row_scale"], ctx.x_dtype), None, None)
        return None, *gradients, None, None, None

    @staticmethod
    @_nested_forward_mode
    def jvp(ctx, _, dx, dbias, dscale, *__):
        t = _ScoreFunction.primals(ctx)
        y, dims = t["y"], formulas.dims_of(t["y"], ctx.dim)
        valid = participation(y, dims, t["mask"], t["lengths"], formulas.CAUSAL[ctx.causal])
        ds = _ScoreFunction.score_tangent(ctx, t, valid, dims, dx, dbias, dscale)
        p = y.to(ctx.acc) if ctx.kind == "softmax" else y.to(ctx.acc).exp()
        p = torch.where(valid, p, 0.0)
        dlse = formulas.sum_over(p * ds, dims)
        if ctx.kind == "softmax":
            dy = p * (ds - dlse)
        else:
            if ctx.zero_masked_rows:
                valid = valid & ~formulas.all_masked(y, dims)
            dy = torch.where(valid, ds - dlse, 0.0)
        dy = dy.to(y.dtype)
        return (dy, dlse.squeeze(dims) if y.ndim else dlse) if ctx.with_lse else dy


class _LogSumExp(_ScoreFunction):
    @staticmethod
    def forward(ctx, run, x, bias, row_scale, dim, keepdim, kwargs):
        lse = run(x, dim, keepdim, bias=bias, row_scale=row_scale, **kwargs)
        tensors = {
            "x": x,
            "lse": lse,
            "bias": bias,
            "row_scale": row_scale,
            "mask": kwargs["mask"],
            "lengths": kwargs["lengths"],
        }
        _ScoreFunction.save(
            ctx,
            tensors,
            x,
            bias,
            dim=dim,
            acc=lse.dtype,
            keepdim=keepdim,
            causal=kwargs["causal"],
            scale=kwargs["scale"],
        )
        return lse

    @staticmethod
    def score_args(ctx, t) -> dict[str, Any]:
        score = {name: t[name] for name in ("mask", "bias", "lengths", "row_scale")}
        return {**score, "causal": ctx.causal, "scale": ctx.scale}

    @staticmethod
    def backward(ctx, grad):
        if grad is None:
            return (None,) * 7
        t = _ScoreFunction.saved(ctx)
        x, lse, dims = t["x"], t["lse"], formulas.dims_of(t["x"], ctx.dim)
        score = _LogSumExp.score_args(ctx, t)
        if any(ctx.needs_input_grad[2:4]):
            ds = formulas.logsumexp_score_gradient(grad, x, lse, dims, **score)
            gradients = _ScoreFunction.input_gradients(ctx, ds, x, t["row_scale"], dims)
        else:
            wanted = (grad, x, lse, t["bias"], t["row_scale"])
            dx = call(_op("logsumexp_backward"), wanted, grad, x, lse, ctx.dim, **score)
            gradients = (dx, None, None)
        return None, *gradients, None, None, None

    @staticmethod
    @_nested_forward_mode
    def jvp(ctx, _, dx, dbias, dscale, *__):
        t = _ScoreFunction.primals(ctx)
        x, lse, dims = t["x"], t["lse"], formulas.dims_of(t["x"], ctx.dim)
        valid = participation(x, dims, t["mask"], t["lengths"], formulas.CAUSAL[ctx.causal])
        ds = _ScoreFunction.score_tangent(ctx, t, valid, dims, dx, dbias, dscale)
        one = torch.ones((), dtype=lse.dtype, device=lse.device).expand(lse.shape)
        p = formulas.logsumexp_score_gradient(one, x, lse, dims, **_LogSumExp.score_args(ctx, t))
        return formulas.sum_over(p * ds, dims, ctx.keepdim)


def normalize(op, kind):
    def kernel(
        keyset, x, dim=(-1,), *, mask=None, bias=None, lengths=None, causal=0, scale=1.0,
        row_scale=None, zero_masked_rows=False, dtype=None, algorithm=0,
    ):  # fmt: skip
        run = _redispatch(op, keyset)
        kwargs = {
            "mask": mask,
            "lengths": lengths,
            "causal": causal,
            "scale": scale,
            "zero_masked_rows": zero_masked_rows,
            "dtype": dtype,
            "algorithm": algorithm,
        }
        if _differentiated(x, bias, row_scale):
            return _apply(_Normalize, run, x, bias, row_scale, kind, dim, kwargs)
        return run(x, dim, bias=bias, row_scale=row_scale, **kwargs)

    return kernel


def logsumexp(op):
    def kernel(
        keyset, x, dim=(-1,), keepdim=False, *, mask=None, bias=None, lengths=None, causal=0,
        scale=1.0, row_scale=None, algorithm=0,
    ):  # fmt: skip
        run = _redispatch(op, keyset)
        kwargs = {
            "mask": mask,
            "lengths": lengths,
            "causal": causal,
            "scale": scale,
            "algorithm": algorithm,
        }
        if _differentiated(x, bias, row_scale):
            return _apply(_LogSumExp, run, x, bias, row_scale, dim, keepdim, kwargs)
        return run(x, dim, keepdim, bias=bias, row_scale=row_scale, **kwargs)

    return kernel


def normalize_backward(op, kind):
    def kernel(
        keyset, grad, y, dim=(-1,), *, mask=None, lengths=None, causal=0, scale=1.0,
        row_scale=None, grad_lse=None, zero_masked_rows=False, dtype=None,
    ):  # fmt: skip
        kwargs = {
            "mask": mask,
            "lengths": lengths,
            "causal": causal,
            "scale": scale,
            "row_scale": row_scale,
            "grad_lse": grad_lse,
            "zero_masked_rows": zero_masked_rows,
            "dtype": dtype,
        }
        if _differentiated(grad, y, row_scale, grad_lse):
            return formulas.normalize_backward(kind, grad, y, dim, **kwargs)
        return _redispatch(op, keyset)(grad, y, dim, **kwargs)

    return kernel


def logsumexp_backward(op):
    def kernel(
        keyset, grad, x, lse, dim=(-1,), *, mask=None, bias=None, lengths=None, causal=0,
        scale=1.0, row_scale=None, dtype=None,
    ):  # fmt: skip
        kwargs = {
            "mask": mask,
            "bias": bias,
            "lengths": lengths,
            "causal": causal,
            "scale": scale,
            "row_scale": row_scale,
            "dtype": dtype,
        }
        if _differentiated(grad, x, lse, bias, row_scale):
            return formulas.logsumexp_backward(grad, x, lse, dim, **kwargs)
        return _redispatch(op, keyset)(grad, x, lse, dim, **kwargs)

    return kernel
