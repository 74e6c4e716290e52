"""The relatives of softmax as public functions: arguments checked, arrays converted, ops called."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from ... import _checks as check
from ... import _interop, _load
from ..._autograd import straight
from ..autograd import call
from ..formulas import accumulation_dtype
from ..functional import _MASKED_ROWS, _score_args

Dim = int | Sequence[int]
MaskedRows = Literal["nan", "zero"]
MAX_ALPHA = 4.0

# For a small tensor most of the time is spent on the way to the kernel.
_plain_topk = _load.fast_op("softmax_topk")


def softmax_topk(
    x: Any,
    k: int,
    dim: int = -1,
    *,
    mask: Any = None,
    lengths: Any = None,
    causal: bool | str = False,
    scale: Any = None,
    renormalize: bool = False,
    masked_rows: MaskedRows = "nan",
) -> tuple[Any, Any]:
    """The ``k`` greatest values of ``softmax(x * scale)`` along ``dim`` and their indices.

    One read of x, and nothing of its size is written (Milakov and Gimelshein, "Online normalizer
    calculation for softmax", section 4). With ``renormalize`` the values are the softmax over the k
    chosen alone: the router of a mixture of experts.

    Args:
        x: Tensor or array of float32, float64, float16 or bfloat16, any shape and strides.
        k: How many, 0 <= k <= x.shape[dim] (1 for an x of 0 dims).
        dim: The dim to reduce over.
        mask, lengths, causal, scale: As in :func:`fastops.softmax`. What does not take part comes
            after everything that does, with value 0.
        renormalize: Divide by the sum over the k chosen in place of that over the row.
        masked_rows: "nan" or "zero": the values of a row in which no score is above -inf.

    Returns:
        ``(values, indices)``: x's shape but for k in ``dim``; values in x's dtype, descending;
        indices int64, as of :func:`torch.topk`. Equal scores come by rising index. Rows without a
        finite sum (NaN or +inf in x) are NaN with indices 0 to k - 1.

    Raises:
        TypeError, ValueError: As :func:`fastops.softmax`, and for k out of range.

    Differentiable twice in x and scale. O(numel) for typical rows, O(n log n) a row at worst;
    accumulates in float32 (float64 for float64).
    """
    if (
        mask is lengths is scale is None
        and causal is renormalize is False
        and masked_rows == "nan"
        and type(k) is type(dim) is int
        and straight(x)
    ):
        try:
            with torch._C._AutoDispatchBelowAutograd():
                return _plain_topk(x, k, dim)[:2]
        except (RuntimeError, TypeError):
            pass  # said properly below
    name = "fastops.softmax_topk"
    if _interop.any_foreign(x, mask, lengths, scale):
        return _interop.call(
            name, softmax_topk, x, k, dim, mask=mask, lengths=lengths, causal=causal, scale=scale,
            renormalize=renormalize, masked_rows=masked_rows,
        )  # fmt: skip
    dims, score = _checked(name, x, dim, mask, lengths, causal, scale, masked_rows)
    if len(dims) != 1:
        raise ValueError(f"{name}: expected one dim, got {dim!r}")
    k = check.integer(name, "k to be an int", k)
    n = check.row_count(x.shape, dims)
    least, what = (0, f"x.shape[{dims[0]}]") if x.ndim else (1, "x of 0 dims")
    if not least <= k <= n:
        raise ValueError(f"{name}: expected k in [{least}, {n}] ({what}), got {k}")
    check.is_bool(name, "renormalize", renormalize)
    values, indices, _ = call(
        _load.op("softmax_topk"), (x, score["row_scale"]), x, k, dims[0],
        renormalize=renormalize, **score,
    )  # fmt: skip
    return values, indices


def entmax(
    x: Any,
    alpha: Any = 1.5,
    dim: Dim = -1,
    *,
    mask: Any = None,
    lengths: Any = None,
    causal: bool | str = False,
    scale: Any = None,
    masked_rows: MaskedRows = "nan",
) -> Any:
    """alpha-entmax of ``x * scale`` along ``dim``: softmax for alpha 1, sparsemax for 2, with exact
    zeros wherever alpha > 1 (Peters, Niculae and Martins, "Sparse Sequence-to-Sequence Models",
    section 3).

    ``y = [(alpha - 1) s - tau]+ ** (1 / (alpha - 1))`` with tau such that y sums to 1, found by
    a guarded Newton iteration, and from the support itself for alpha 1.5 and 2; nothing is sorted.

    Args:
        x: Tensor or array of float32, float64, float16 or bfloat16, any shape and strides.
        alpha: 0 < alpha <= 4: a number, or a floating tensor with one value per row (x's rank with
            size 1 in the reduced dims, or broadcastable to x's shape without them), which may
            require a gradient. Values out of range are errors where they can be read at once
            (eager CPU), and give NaN rows elsewhere. For alpha < 1 the tails are heavier than
            softmax's.
        dim: The dim to reduce over, or a tuple of dims.
        mask, lengths, causal, scale, masked_rows: As in :func:`fastops.softmax`.

    Returns:
        A tensor of x's shape and dtype, laid out as :func:`torch.empty_like` would. Rows with a NaN
        or +inf among the elements that take part are NaN.

    Raises:
        TypeError, ValueError: As :func:`fastops.softmax`, and for alpha out of range.

    Differentiable twice in x, alpha and scale: off the support the gradient is 0. O(numel) time;
    accumulates in float32 (float64 for float64).
    """
    return _entmax("fastops.entmax", entmax, x, alpha, dim, mask, lengths, causal, scale,
                   masked_rows)  # fmt: skip


def entmax15(
    x: Any,
    dim: Dim = -1,
    *,
    mask: Any = None,
    lengths: Any = None,
    causal: bool | str = False,
    scale: Any = None,
    masked_rows: MaskedRows = "nan",
) -> Any:
    """:func:`entmax` with alpha 1.5: ``y = [s / 2 - tau]+ ** 2``, exact on its support."""
    return _entmax("fastops.entmax15", entmax15, x, 1.5, dim, mask, lengths, causal, scale,
                   masked_rows)  # fmt: skip


def sparsemax(
    x: Any,
    dim: Dim = -1,
    *,
    mask: Any = None,
    lengths: Any = None,
    causal: bool | str = False,
    scale: Any = None,
    masked_rows: MaskedRows = "nan",
) -> Any:
    """:func:`entmax` with alpha 2, the projection onto the simplex: ``y = [s - tau]+`` (Martins and
    Astudillo, "From Softmax to Sparsemax", section 2), exact on its support."""
    return _entmax("fastops.sparsemax", sparsemax, x, 2.0, dim, mask, lengths, causal, scale,
                   masked_rows)  # fmt: skip


def pladis_softmax(
    x: Any,
    lam: float,
    alpha: float = 1.5,
    dim: Dim = -1,
    *,
    mask: Any = None,
    lengths: Any = None,
    causal: bool | str = False,
    scale: Any = None,
    masked_rows: MaskedRows = "nan",
) -> Any:
    """``softmax(s) + lam * (entmax(s, alpha) - softmax(s))``, the attention weights of PLADIS (Kim
    and Sim, "PLADIS: Pushing the Limits of Attention in Diffusion Models at Inference Time by
    Leveraging Sparsity", section 4), in one pass over a row.

    Args:
        lam: Any finite number; 0 is softmax, 1 is entmax, and beyond 1 extrapolates.
        alpha: A number, 0 < alpha <= 4.
        x, dim, mask, lengths, causal, scale, masked_rows: As in :func:`entmax`; results and errors
            too. Differentiable twice in x and scale.
    """
    name = "fastops.pladis_softmax"
    if _interop.any_foreign(x, mask, lengths, scale):
        return _interop.call(
            name, pladis_softmax, x, lam, alpha, dim, mask=mask, lengths=lengths, causal=causal,
            scale=scale, masked_rows=masked_rows,
        )  # fmt: skip
    lam = _number(name, "lam", lam)
    if not -math.inf < lam < math.inf:
        raise ValueError(f"{name}: expected a finite lam, got {lam}")
    alpha = _checked_alpha(name, alpha)
    dims, score = _checked(name, x, dim, mask, lengths, causal, scale, masked_rows)
    return call(
        _load.op("pladis_softmax"), (x, score["row_scale"]), x, dims, lam=lam, alpha=alpha, **score
    )


def softpick(
    x: Any,
    dim: Dim = -1,
    eps: float = 1e-8,
    *,
    mask: Any = None,
    lengths: Any = None,
    causal: bool | str = False,
    scale: Any = None,
    masked_rows: MaskedRows = "zero",
) -> Any:
    """Rectified softmax ``relu(u) / (sum |u| + eps)``, ``u = exp(s - c) - exp(-c)`` (Zuhri et al.,
    "Softpick: No Attention Sink, No Massive Activations with Rectified Softmax", section 2).

    ``c = max(0, max s)``, where the published code subtracts ``max s`` alone and overflows for very
    negative rows; eps then weighs a little differently there.

    Args:
        eps: A number >= 0.
        masked_rows: "zero" (the formula's own answer) or "nan": a row without a score above -inf.
        x, dim, mask, lengths, causal, scale: As in :func:`entmax`; results and errors too.
            Differentiable twice in x and scale; at s = 0 the gradient is that of relu and abs: 0.
    """
    name = "fastops.softpick"
    if _interop.any_foreign(x, mask, lengths, scale):
        return _interop.call(
            name, softpick, x, dim, eps, mask=mask, lengths=lengths, causal=causal, scale=scale,
            masked_rows=masked_rows,
        )  # fmt: skip
    eps = _number(name, "eps", eps)
    if not eps >= 0:
        raise ValueError(f"{name}: expected eps >= 0, got {eps}")
    dims, score = _checked(name, x, dim, mask, lengths, causal, scale, masked_rows)
    return call(_load.op("softpick"), (x, score["row_scale"]), x, dims, eps=eps, **score)


def stablemax(
    x: Any,
    dim: Dim = -1,
    *,
    mask: Any = None,
    lengths: Any = None,
    causal: bool | str = False,
    scale: Any = None,
    masked_rows: MaskedRows = "nan",
) -> Any:
    """``t / sum(t)`` with t = s + 1 for s >= 0 and 1 / (1 - s) below (Prieto et al., "Grokking at
    the Edge of Numerical Stability", section 4).

    Arguments, result and errors as of :func:`entmax`. Differentiable twice in x and scale.
    """
    return _stablemax("stablemax", stablemax, x, dim, mask, lengths, causal, scale, masked_rows)


def log_stablemax(
    x: Any,
    dim: Dim = -1,
    *,
    mask: Any = None,
    lengths: Any = None,
    causal: bool | str = False,
    scale: Any = None,
    masked_rows: MaskedRows = "nan",
) -> Any:
    """Logarithm of :func:`stablemax`. Elements that do not take part give -inf, and their incoming
    gradient is dropped; so does that of scores of -inf. With ``masked_rows="zero"`` a row without a
    score above -inf is -inf."""
    return _stablemax("log_stablemax", log_stablemax, x, dim, mask, lengths, causal, scale,
                      masked_rows)  # fmt: skip


# ---- arguments ----------------------------------------------------------------------------------


def _checked(name, x, dim, mask, lengths, causal, scale, masked_rows):
    """(dims, the op's arguments that make scores of x)."""
    check.is_tensor(name, "x", x)
    check.is_floating(name, "x", x)
    check.one_of(name, "masked_rows", masked_rows, tuple(_MASKED_ROWS))
    dims = check.dims(name, dim, x.ndim)
    acc = accumulation_dtype(x.dtype)
    score = _score_args(name, x, dims, mask, None, lengths, causal, scale, acc)
    del score["bias"]
    score["zero_masked_rows"] = _MASKED_ROWS[masked_rows]
    _load.require(name, x.device)
    return dims, score


def _number(name: str, arg: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {arg} to be a number, got {type(value).__name__}")
    return float(value)


def _checked_alpha(name: str, alpha: Any) -> float:
    alpha = _number(name, "alpha", alpha)
    if not 0 < alpha <= MAX_ALPHA:
        raise ValueError(f"{name}: expected alpha in (0, {MAX_ALPHA:g}], got {alpha}")
    return alpha


def _alpha_args(name: str, alpha: Any, x: Tensor, dims: tuple[int, ...]) -> dict[str, Any]:
    """alpha as the op takes it: a number, or one value per row in the accumulation dtype."""
    if not isinstance(alpha, Tensor):
        return {"alpha": _checked_alpha(name, alpha), "row_alpha": None}
    check.is_floating(name, "alpha", alpha)
    check.same_device(name, "alpha", alpha, x)
    check.per_row(name, "alpha", alpha, x, dims)
    if alpha.numel() and alpha.device.type == "cpu" and check.is_plain(alpha):
        least, most = (v.item() for v in torch.aminmax(alpha.detach()))
        if not (least > 0 and most <= MAX_ALPHA):
            bad = most if least > 0 else least
            raise ValueError(f"{name}: expected alpha in (0, {MAX_ALPHA:g}], got {bad}")
    return {"alpha": 1.5, "row_alpha": alpha.to(accumulation_dtype(x.dtype))}


def _entmax(name, function, x, alpha, dim, mask, lengths, causal, scale, masked_rows):
    if _interop.any_foreign(x, alpha, mask, lengths, scale):
        given = {"alpha": alpha} if function is entmax else {}
        return _interop.call(
            name, function, x, **given, dim=dim, mask=mask, lengths=lengths, causal=causal,
            scale=scale, masked_rows=masked_rows,
        )  # fmt: skip
    dims, score = _checked(name, x, dim, mask, lengths, causal, scale, masked_rows)
    alphas = _alpha_args(name, alpha, x, dims)
    wanted = (x, score["row_scale"], alphas["row_alpha"])
    return call(_load.op("entmax"), wanted, x, dims, **alphas, **score)


def _stablemax(kind, function, x, dim, mask, lengths, causal, scale, masked_rows):
    name = f"fastops.{kind}"
    if _interop.any_foreign(x, mask, lengths, scale):
        return _interop.call(
            name, function, x, dim, mask=mask, lengths=lengths, causal=causal, scale=scale,
            masked_rows=masked_rows,
        )  # fmt: skip
    dims, score = _checked(name, x, dim, mask, lengths, causal, scale, masked_rows)
    return call(_load.op(kind), (x, score["row_scale"]), x, dims, **score)
