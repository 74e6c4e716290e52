"""Derivatives of the relatives of softmax: backward in the backward ops, further ones by the
formulas of formulas.py. What the functions at the end return is registered for the Autograd key.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..._autograd import apply, differentiated, redispatch
from ..._load import op as _op
from ..autograd import call
from ..formulas import accumulation_dtype, dims_of, sum_over, to_x
from . import formulas

SCORE = ("mask", "lengths", "causal", "scale", "row_scale")


def entmax_of_scores(s: Tensor, alpha: float | Tensor, dims) -> Tensor:
    """entmax of scores already made, for formulas that need it."""
    given = {"row_alpha": alpha} if isinstance(alpha, Tensor) else {"alpha": alpha}
    wanted = (s, given.get("row_alpha"))
    return call(_op("entmax"), wanted, s, dims, zero_masked_rows=True, **given)


def _sum_to(rows: Tensor, like: Tensor, rank: int, dims) -> Tensor:
    """A gradient with one value per row as that of a tensor that broadcasts to the rows."""
    if rank and like.ndim == rank:
        for d in dims:
            rows = rows.unsqueeze(d)
    return rows.sum_to_size(like.shape)


class _RowFunction(Function):
    """What the functions below share: their first inputs are (run, x, row_scale)."""

    @staticmethod
    def save(ctx, tensors: dict[str, Tensor | None], kwargs: dict, **attributes: Any) -> None:
        tensors = {**tensors, "mask": kwargs["mask"], "lengths": kwargs["lengths"]}
        ctx.names = tuple(tensors)
        ctx.save_for_backward(*tensors.values())
        ctx.set_materialize_grads(False)
        ctx.kwargs = {k: v for k, v in kwargs.items() if k not in tensors}
        for name, value in attributes.items():
            setattr(ctx, name, value)

    @staticmethod
    def saved(ctx) -> dict[str, Tensor | None]:
        return dict(zip(ctx.names, ctx.saved_tensors, strict=True))

    @staticmethod
    def gradients(ctx, t, x, dims, backward):
        """Gradients of x and row_scale. `backward(s, scale, row_scale, dtype)` is the backward op
        on x or, for the gradient of the scores themselves, on scores."""
        need_x, need_scale = ctx.needs_input_grad[1:3]
        scale, row_scale = ctx.kwargs["scale"], t["row_scale"]
        if not need_scale:
            dx = backward(None, scale, row_scale, ctx.x_dtype) if need_x else None
            return dx, None
        acc = accumulation_dtype(ctx.x_dtype)
        x, known = x.to(acc), x.isfinite()
        finite = torch.where(known, x, 0.0)
        # What is not finite is no factor of the second derivative: 0 * inf.
        special = to_x(x.detach(), scale, row_scale.detach(), dims, acc)
        s = torch.where(known, to_x(finite, scale, row_scale, dims, acc), special)
        ds = backward(s, 1.0, None, acc)
        rows = sum_over(ds * finite, dims) * scale
        rows = rows.squeeze(dims) if x.ndim else rows
        dx = to_x(ds, scale, row_scale, dims, ctx.x_dtype) if need_x else None
        return dx, _sum_to(rows, row_scale, x.ndim, dims).to(row_scale.dtype)


class _Map(_RowFunction):
    """entmax, whose backward works from y, and the maps whose backward works from x."""

    @staticmethod
    def forward(ctx, run, x, row_scale, row_alpha, name, dim, kwargs):
        alphas = {"row_alpha": row_alpha} if name == "entmax" else {}
        y = run(x, dim, row_scale=row_scale, **alphas, **kwargs)
        from_y = name == "entmax"
        wanted = not from_y or ctx.needs_input_grad[2]
        tensors = {"x": x if wanted else None, "y": y if from_y else None}
        tensors |= {"row_scale": row_scale, "row_alpha": row_alpha}
        params = {k: v for k, v in kwargs.items() if k not in (*SCORE, "zero_masked_rows")}
        _RowFunction.save(ctx, tensors, kwargs, name=name, dim=dim, params=params, x_dtype=x.dtype)
        return y

    @staticmethod
    def backward(ctx, grad):
        if grad is None:
            return (None,) * 7
        t = _RowFunction.saved(ctx)
        from_y = t["y"] is not None
        main = t["y"] if from_y else t["x"]
        dims = dims_of(main, ctx.dim)
        score = {"mask": t["mask"], "lengths": t["lengths"], "causal": ctx.kwargs["causal"]}
        params = {**ctx.params, **({"row_alpha": t["row_alpha"]} if from_y else {})}

        def backward_op(s, scale, row_scale, dtype):
            source = main if from_y or s is None else s
            return call(
                _op(f"{ctx.name}_backward"), (grad, source, row_scale, t["row_alpha"]),
                grad, source, ctx.dim, scale=scale, row_scale=row_scale, **score, **params,
                dtype=dtype,
            )  # fmt: skip

        dx = dscale = dalpha = None
        if any(ctx.needs_input_grad[1:3]):
            dx, dscale = _RowFunction.gradients(ctx, t, t["x"], dims, backward_op)
        if ctx.needs_input_grad[3]:
            rows = call(
                _op("entmax_alpha_backward"), (grad, main, t["row_alpha"]),
                grad, main, ctx.dim, **score, **params,
            )  # fmt: skip
            dalpha = _sum_to(rows, t["row_alpha"], main.ndim, dims)
        return None, dx, dscale, dalpha, None, None, None


class _Loss(_RowFunction):
    """entmax_loss. alpha has no gradient here."""

    @staticmethod
    def forward(ctx, run, x, row_scale, target, row_alpha, dim, kwargs):
        loss = run(x, target, dim, row_scale=row_scale, row_alpha=row_alpha, **kwargs)
        tensors = {"x": x, "row_scale": row_scale, "target": target, "row_alpha": row_alpha}
        _RowFunction.save(ctx, tensors, kwargs, dim=dim, x_dtype=x.dtype)
        return loss

    @staticmethod
    def backward(ctx, grad):
        if grad is None:
            return (None,) * 7
        t = _RowFunction.saved(ctx)
        x, dims = t["x"], dims_of(t["x"], ctx.dim)

        def backward_op(s, scale, row_scale, dtype):
            source = x if s is None else s
            return call(
                _op("entmax_loss_backward"), (grad, source, row_scale, t["row_alpha"]),
                grad, source, t["target"], ctx.dim, mask=t["mask"], lengths=t["lengths"],
                causal=ctx.kwargs["causal"], scale=scale, row_scale=row_scale,
                alpha=ctx.kwargs["alpha"], row_alpha=t["row_alpha"],
                ignore_index=ctx.kwargs["ignore_index"], dtype=dtype,
            )  # fmt: skip

        return None, *_RowFunction.gradients(ctx, t, x, dims, backward_op), *(None,) * 4


class _Topk(_RowFunction):
    @staticmethod
    def forward(ctx, run, x, row_scale, k, dim, kwargs):
        values, indices, lse = run(x, k, dim, row_scale=row_scale, **kwargs)
        tensors = {"x": x, "row_scale": row_scale, "indices": indices, "lse": lse}
        _RowFunction.save(ctx, tensors, kwargs, dim=dim, x_dtype=x.dtype)
        ctx.mark_non_differentiable(indices, lse)
        return values, indices, lse

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 6
        t = _RowFunction.saved(ctx)
        x, dims = t["x"], dims_of(t["x"], (ctx.dim,))

        def backward_op(s, scale, row_scale, dtype):
            source = x if s is None else s
            return call(
                _op("softmax_topk_backward"), (grad, source, row_scale),
                grad, t["indices"], source, t["lse"], ctx.dim, mask=t["mask"],
                lengths=t["lengths"], causal=ctx.kwargs["causal"], scale=scale,
                row_scale=row_scale, renormalize=ctx.kwargs["renormalize"], dtype=dtype,
            )  # fmt: skip

        return None, *_RowFunction.gradients(ctx, t, x, dims, backward_op), *(None,) * 3


# ---- Kernels of the Autograd key ------------------------------------------------------------


def _defaults(op) -> dict[str, Any]:
    return {a.name: a.default_value for a in op._schema.arguments if a.kwarg_only}


def map_(op, name):
    defaults = _defaults(op)

    def kernel(keyset, x, dim=(-1,), **given):
        run, kwargs = redispatch(op, keyset), {**defaults, **given}
        row_alpha = kwargs.get("row_alpha")
        if not differentiated(x, kwargs["row_scale"], row_alpha):
            return run(x, dim, **kwargs)
        row_scale = kwargs.pop("row_scale")
        kwargs.pop("row_alpha", None)
        return apply(_Map, run, x, row_scale, row_alpha, name, dim, kwargs)

    return kernel


def loss(op):
    defaults = _defaults(op)

    def kernel(keyset, x, target, dim=(-1,), **given):
        run, kwargs = redispatch(op, keyset), {**defaults, **given}
        if not differentiated(x, kwargs["row_scale"]):
            return run(x, target, dim, **kwargs)
        row_scale, row_alpha = kwargs.pop("row_scale"), kwargs.pop("row_alpha")
        return apply(_Loss, run, x, row_scale, target, row_alpha, dim, kwargs)

    return kernel


def topk(op):
    defaults = _defaults(op)

    def kernel(keyset, x, k, dim=-1, **given):
        run, kwargs = redispatch(op, keyset), {**defaults, **given}
        if not differentiated(x, kwargs["row_scale"]):
            return run(x, k, dim, **kwargs)
        return apply(_Topk, run, x, kwargs.pop("row_scale"), k, dim, kwargs)

    return kernel


def _backward(op, formula, count):
    """A backward op of `count` tensors: by its formula where it is differentiated itself."""
    defaults = _defaults(op)

    def kernel(keyset, *args, **given):
        kwargs = {**defaults, **given}
        tensors, dim = args[:count], (args[count] if len(args) > count else (-1,))
        rows = (kwargs["row_scale"], kwargs.get("row_alpha"))
        if differentiated(*tensors, *rows):
            return formula(*tensors, dim, **kwargs)
        return redispatch(op, keyset)(*tensors, dim, **kwargs)

    return kernel


def map_backward(op, name):
    if name in ("stablemax", "log_stablemax"):
        log = name == "log_stablemax"
        return _backward(op, lambda *a, **k: formulas.stablemax_backward(*a, log=log, **k), 2)
    return _backward(op, getattr(formulas, f"{name}_backward"), 2)


def alpha_backward(op):
    return _backward(op, formulas.entmax_alpha_backward, 2)


def loss_backward(op):
    return _backward(op, formulas.entmax_loss_backward, 3)


def topk_backward(op):
    def formula(grad, indices, x, lse, dim, **kwargs):
        dim = dim if isinstance(dim, int) else -1
        return formulas.softmax_topk_backward(grad, indices, x, dim, **kwargs)

    inner = _backward(op, formula, 4)

    def kernel(keyset, grad, indices, x, lse, dim=-1, **given):
        return inner(keyset, grad, indices, x, lse, dim, **given)

    return kernel
