"""The Fenchel-Young losses of entmax: what cross entropy is to softmax."""

from typing import Any, Literal

import torch
from torch import Tensor

from ... import _checks as check
from ... import _interop, _load
from ..autograd import call
from .functional import MaskedRows, _alpha_args, _checked

Reduction = Literal["none", "mean", "sum"]


def entmax_loss(
    x: Any,
    target: Any,
    alpha: Any = 1.5,
    dim: int = -1,
    *,
    mask: Any = None,
    lengths: Any = None,
    causal: bool | str = False,
    scale: Any = None,
    masked_rows: MaskedRows = "nan",
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Any:
    """``(1 - sum p**alpha) / (alpha (alpha - 1)) + <p, s> - s[target]``, ``p = entmax(s, alpha)``
    (Blondel, Martins and Niculae, "Learning with Fenchel-Young Losses", section 4.3; cross entropy
    for alpha 1). Zero where p is 1 at the target; its gradient is ``p - one_hot(target)``.

    p is not kept between forward and backward: both read x once.

    Args:
        x: Scores: tensor or array of float32, float64, float16 or bfloat16.
        target: int64 class indices, one per row (x's shape without ``dim``). Out of range: a
            ValueError where that can be read at once (eager CPU), NaN elsewhere.
        alpha: As in :func:`fastops.entmax`; without a gradient here.
        dim: The dim of the classes.
        mask, lengths, causal, scale: As in :func:`fastops.softmax`. A row whose target takes no
            part has loss +inf.
        masked_rows: "nan" or "zero": the loss of a row in which no score is above -inf; "zero" has
            no gradient, and counts in the mean.
        reduction: "none" gives one loss per row, "mean" the mean over rows not ignored, "sum".
        ignore_index: Rows with this target have loss 0, no gradient, and do not count.

    Returns:
        A tensor of x's dtype (computed in float32 at least): x's shape without ``dim``, or 0-d.

    Raises:
        TypeError, ValueError: As :func:`fastops.entmax`.

    Differentiable twice in x and scale.
    """
    return _loss("fastops.entmax_loss", entmax_loss, x, target, alpha, dim, mask, lengths, causal,
                 scale, masked_rows, reduction, ignore_index)  # fmt: skip


def sparsemax_loss(
    x: Any,
    target: Any,
    dim: int = -1,
    *,
    mask: Any = None,
    lengths: Any = None,
    causal: bool | str = False,
    scale: Any = None,
    masked_rows: MaskedRows = "nan",
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Any:
    """:func:`entmax_loss` with alpha 2 (Martins and Astudillo, "From Softmax to Sparsemax",
    section 3.2)."""
    return _loss("fastops.sparsemax_loss", sparsemax_loss, x, target, 2.0, dim, mask, lengths,
                 causal, scale, masked_rows, reduction, ignore_index)  # fmt: skip


def entmax15_loss(
    x: Any,
    target: Any,
    dim: int = -1,
    *,
    mask: Any = None,
    lengths: Any = None,
    causal: bool | str = False,
    scale: Any = None,
    masked_rows: MaskedRows = "nan",
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Any:
    """:func:`entmax_loss` with alpha 1.5."""
    return _loss("fastops.entmax15_loss", entmax15_loss, x, target, 1.5, dim, mask, lengths, causal,
                 scale, masked_rows, reduction, ignore_index)  # fmt: skip


def _loss(
    name, function, x, target, alpha, dim, mask, lengths, causal, scale, masked_rows, reduction,
    ignore_index,
):  # fmt: skip
    if _interop.any_foreign(x, target, alpha, mask, lengths, scale):
        given = {"alpha": alpha} if function is entmax_loss else {}
        return _interop.call(
            name, function, x, target=target, **given, dim=dim, mask=mask, lengths=lengths,
            causal=causal, scale=scale, masked_rows=masked_rows, reduction=reduction,
            ignore_index=ignore_index,
        )  # fmt: skip
    dims, score = _checked(name, x, dim, mask, lengths, causal, scale, masked_rows)
    if len(dims) != 1:
        raise ValueError(f"{name}: expected one dim, got {dim!r}")
    alphas = _alpha_args(name, alpha, x, dims)
    if alphas["row_alpha"] is not None:
        alphas["row_alpha"] = alphas["row_alpha"].detach()
    check.one_of(name, "reduction", reduction, ("none", "mean", "sum"))
    ignore_index = check.integer(name, "ignore_index to be an int", ignore_index)
    check.is_tensor(name, "target", target)
    check.is_dtype(name, "target", target, torch.int64)
    check.same_device(name, "target", target, x)
    rows = tuple(size for d, size in enumerate(x.shape) if d not in dims)
    if check.shape_of(target) != rows:
        raise ValueError(
            f"{name}: expected target of shape {rows} (x.shape without dim), got "
            f"{check.shape_of(target)}"
        )
    ignored = target == ignore_index
    n = check.row_count(x.shape, dims)
    check.within(name, "target", torch.where(ignored, 0, target), 0, max(n - 1, 0))
    loss = call(
        _load.op("entmax_loss"), (x, score["row_scale"]), x, target, dims,
        ignore_index=ignore_index, **alphas, **score,
    )  # fmt: skip
    return _reduce(loss, ignored, reduction).to(x.dtype)


def _reduce(loss: Tensor, ignored: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / (~ignored).sum()
