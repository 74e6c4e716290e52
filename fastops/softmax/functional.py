"""softmax, log_softmax and logsumexp: arguments checked, arrays converted, ops called."""

from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from .. import _checks as check
from .. import _interop, _load
from .autograd import call_logsumexp, call_normalize
from .formulas import accumulation_dtype

__all__ = ["log_softmax", "logsumexp", "softmax"]

Dim = int | Sequence[int]
Causal = bool | Literal["upper_left", "lower_right"]
MaskedRows = Literal["nan", "zero"]
Algorithm = Literal["auto", "online", "two_pass", "three_pass"]

_ALGORITHMS = {"auto": 0, "online": 1, "two_pass": 2, "three_pass": 3}
_CAUSAL = {False: 0, True: 1, "upper_left": 1, "lower_right": 2}
_MASKED_ROWS = {"nan": False, "zero": True}

# The ops with the fewest arguments and no gradient, without the layers of OpOverload.__call__: for
# a small tensor most of the time is spent on the way to the kernel.
_plain_softmax = _load.fast_op("_softmax")
_plain_softmax_out = _load.fast_op("_softmax", "out")
_plain_log_softmax = _load.fast_op("_log_softmax")
_plain_log_softmax_out = _load.fast_op("_log_softmax", "out")
_is_compiling = torch.compiler.is_compiling


def softmax(
    x: Any,
    dim: Dim = -1,
    *,
    mask: Any = None,
    bias: Any = None,
    lengths: Any = None,
    causal: Causal = False,
    scale: Any = None,
    masked_rows: MaskedRows = "nan",
    dtype: torch.dtype | None = None,
    return_lse: bool = False,
    algorithm: Algorithm = "auto",
    out: Any = None,
) -> Any:
    """Softmax of ``s = x * scale + bias`` over ``dim``, of the elements that take part.

    Element j of a row takes part iff ``mask`` is True there, ``j < lengths`` of its row, and, under
    ``causal``, ``j <= query + offset``. Elements that do not take part give 0, and their values
    (NaN and inf included) influence nothing. NaN and infinities that take part, empty rows and 0-d
    tensors behave as in :func:`torch.softmax`.

    Args:
        x: Tensor or array of float32, float64, float16 or bfloat16, any shape and strides; of other
            real dtypes where ``dtype`` says what to convert to. NumPy, CuPy and other DLPack arrays
            are read in place, and the answer comes back in their kind.
        dim: The dim to reduce over, or a tuple of dims.
        mask: bool, broadcastable to ``x.shape``. True: takes part. Never expanded in memory.
        bias: Added after scaling; ``x.dtype`` or float32, broadcastable to ``x.shape``.
        lengths: int32 or int64 in [0, n], one per row: x's rank with size 1 in the reduced dims, or
            broadcastable to the row shape (``x.shape`` without the reduced dims). Counts elements
            in row-major order of the reduced dims. Values out of range are errors where they can
            be read at once (eager CPU), and clamped elsewhere.
        causal: True or "upper_left": ``j <= query``; "lower_right":
            ``j <= query + keys - queries``. Keys are the last dim, which ``dim`` must be, queries
            the one before.
        scale: A number, or a floating tensor with one value per row (shaped like ``lengths``):
            1 / temperature.
        masked_rows: What a row becomes in which every score is -inf or no element takes part:
            "nan", as in torch, or "zero" (with zero gradient).
        dtype: Of the result; default ``x.dtype``. The cast is fused: one rounding.
        return_lse: Also return ``log(sum(exp(s)))`` per row.
        algorithm: "online", "two_pass" (Dukhan and Ablavatski, "Two-Pass Softmax Algorithm",
            section 4) or "three_pass"; "auto" picks by size and device. All agree within rounding.
        out: Tensor of the result's shape, dtype and device to write to; may be x itself, and else
            shares no memory with an argument. With ``return_lse``, a pair ``(out, lse)``.

    Returns:
        A tensor of x's shape, dtype ``dtype`` or ``x.dtype``, laid out as
        :func:`torch.empty_like` would; with ``return_lse`` a pair of it and the lse, which has the
        reduced dims removed and is float32 (float64 where x or the result is).

    Raises:
        TypeError: An argument of the wrong type or dtype.
        ValueError: A dim out of range, a shape that does not broadcast, lengths outside [0, n],
            tensors on different devices, or ``out`` of the wrong shape or overlapping.
        RuntimeError: ``out`` while an argument requires grad, or the kernels are not available.

    Differentiable in x, bias and scale to any order, forward mode included.
    O(numel) time, no extra memory of x's size; accumulates in float32 (float64 for float64).
    """
    if (
        mask is bias is lengths is scale is dtype is None
        and causal is return_lse is False
        and masked_rows == "nan"
        and algorithm == "auto"
        and type(x) is Tensor
        and forward_ad._current_level < 0
        and not (x.requires_grad and torch.is_grad_enabled())
        and not _is_compiling()
    ):
        try:
            if out is None:
                return _plain_softmax(x, dim)
            if _plain_out(x, out):
                return _plain_softmax_out(x, dim, out=out)
        except (RuntimeError, TypeError):
            pass  # said properly below
    return _normalize(
        "softmax", x, dim, mask, bias, lengths, causal, scale, masked_rows, dtype, return_lse,
        algorithm, out,
    )  # fmt: skip


def log_softmax(
    x: Any,
    dim: Dim = -1,
    *,
    mask: Any = None,
    bias: Any = None,
    lengths: Any = None,
    causal: Causal = False,
    scale: Any = None,
    masked_rows: MaskedRows = "nan",
    dtype: torch.dtype | None = None,
    return_lse: bool = False,
    algorithm: Algorithm = "auto",
    out: Any = None,
) -> Any:
    """Logarithm of :func:`softmax`, with the same arguments, result and errors.

    Computed as ``(s - max) - log(sum(exp(s - max)))``, which is exact where scores are large.
    Elements that do not take part give -inf, and their incoming gradient is dropped. Rows without
    an element that takes part are NaN, or -inf with ``masked_rows="zero"``.
    """
    if (
        mask is bias is lengths is scale is dtype is None
        and causal is return_lse is False
        and masked_rows == "nan"
        and algorithm == "auto"
        and type(x) is Tensor
        and forward_ad._current_level < 0
        and not (x.requires_grad and torch.is_grad_enabled())
        and not _is_compiling()
    ):
        try:
            if out is None:
                return _plain_log_softmax(x, dim)
            if _plain_out(x, out):
                return _plain_log_softmax_out(x, dim, out=out)
        except (RuntimeError, TypeError):
            pass  # said properly below
    return _normalize(
        "log_softmax", x, dim, mask, bias, lengths, causal, scale, masked_rows, dtype, return_lse,
        algorithm, out,
    )  # fmt: skip


def logsumexp(
    x: Any,
    dim: Dim,
    keepdim: bool = False,
    *,
    mask: Any = None,
    bias: Any = None,
    lengths: Any = None,
    causal: Causal = False,
    scale: Any = None,
) -> Any:
    """``log(sum(exp(s)))`` of ``s = x * scale + bias`` over ``dim``.

    Args:
        x, dim, mask, bias, lengths, causal, scale: As in :func:`softmax`.
        keepdim: Keep the reduced dims, with size 1.

    Returns:
        A tensor of x's dtype without the reduced dims (or with size 1 in them). Rows in which no
        element takes part, and empty ones, are -inf. Infinities and NaN as in
        :func:`torch.logsumexp`.

    Raises:
        TypeError, ValueError: As :func:`softmax`.

    Differentiable in x, bias and scale to any order. Reads x once and keeps nothing of its size.
    """
    name = "fastops.logsumexp"
    if _interop.any_foreign(x, mask, bias, lengths, scale):
        return _interop.call(
            name, logsumexp, x, dim, keepdim,
            mask=mask, bias=bias, lengths=lengths, causal=causal, scale=scale,
        )  # fmt: skip
    check.is_tensor(name, "x", x)
    check.is_floating(name, "x", x)
    check.is_bool(name, "keepdim", keepdim)
    dims = check.dims(name, dim, x.ndim)
    acc = accumulation_dtype(x.dtype)
    score = _score_args(name, x, dims, mask, bias, lengths, causal, scale, acc)
    _load.require(name, x.device)
    lse = call_logsumexp(_load.op("logsumexp"), x, dims, keepdim, **score, algorithm=0)
    return lse if lse.dtype == x.dtype or _autocast_to_float(x) else lse.to(x.dtype)


def _plain_out(x: Tensor, out: Any) -> bool:
    """Whether to ask the plain op, which itself looks at dtypes, shapes and memory."""
    return (
        type(out) is Tensor
        and not out.requires_grad
        and out.device == x.device
        and x.is_contiguous()
        and out.is_contiguous()
    )


def _autocast_to_float(x: Tensor) -> bool:
    """CUDA autocast leaves the result of logsumexp in float32, as torch does."""
    return x.device.type == "cuda" and torch.is_autocast_enabled("cuda")


def _score_args(name, x, dims, mask, bias, lengths, causal, scale, acc) -> dict[str, Any]:
    """The checked arguments of the op that make scores of x."""
    if mask is not None:
        check.is_tensor(name, "mask", mask)
        check.is_dtype(name, "mask", mask, torch.bool)
        check.same_device(name, "mask", mask, x)
        check.broadcasts(name, "mask", mask, x.shape, "x.shape")
    if bias is not None:
        check.is_tensor(name, "bias", bias)
        check.is_dtype(name, "bias", bias, x.dtype, torch.float32)
        check.same_device(name, "bias", bias, x)
        check.broadcasts(name, "bias", bias, x.shape, "x.shape")
    if lengths is not None:
        check.is_tensor(name, "lengths", lengths)
        check.is_dtype(name, "lengths", lengths, torch.int32, torch.int64)
        check.same_device(name, "lengths", lengths, x)
        check.per_row(name, "lengths", lengths, x, dims)
        check.within(name, "lengths", lengths, 0, check.row_count(x.shape, dims))
    if causal is not False:
        check.one_of(name, "causal", causal, tuple(_CAUSAL))
        if x.ndim < 2:
            raise ValueError(f"{name}: expected x of at least 2 dims for causal, got {x.ndim}")
        if dims != (x.ndim - 1,):
            raise ValueError(f"{name}: expected dim == -1 for causal, got dim {dims}")
    row_scale = None
    if isinstance(scale, Tensor):
        check.is_tensor(name, "scale", scale)
        check.is_floating(name, "scale", scale)
        check.same_device(name, "scale", scale, x)
        check.per_row(name, "scale", scale, x, dims)
        scale, row_scale = 1.0, scale.to(acc)
    elif scale is None:
        scale = 1.0
    elif isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(
            f"{name}: expected scale to be a number or a tensor, got {type(scale).__name__}"
        )
    return {
        "mask": mask,
        "bias": bias,
        "lengths": lengths,
        "causal": _CAUSAL[causal],
        "scale": float(scale),
        "row_scale": row_scale,
    }


def _normalize(
    kind, x, dim, mask, bias, lengths, causal, scale, masked_rows, dtype, return_lse, algorithm, out
):
    """softmax and log_softmax, every case."""
    name = f"fastops.{kind}"
    if _interop.any_foreign(x, mask, bias, lengths, scale, out):
        return _interop.call(
            name, softmax if kind == "softmax" else log_softmax, x, dim,
            mask=mask, bias=bias, lengths=lengths, causal=causal, scale=scale,
            masked_rows=masked_rows, dtype=dtype, return_lse=return_lse, algorithm=algorithm,
            out=out,
        )  # fmt: skip
    check.is_tensor(name, "x", x)
    given = x
    if dtype is not None:
        check.floating_dtype(name, dtype)
        if x.dtype not in check.FLOATING and not x.dtype.is_complex:
            x = x.to(dtype)
    check.is_floating(name, "x", x)
    check.one_of(name, "masked_rows", masked_rows, tuple(_MASKED_ROWS))
    check.one_of(name, "algorithm", algorithm, tuple(_ALGORITHMS))
    check.is_bool(name, "return_lse", return_lse)
    dims = check.dims(name, dim, x.ndim)
    acc = accumulation_dtype(x.dtype, dtype)
    score = _score_args(name, x, dims, mask, bias, lengths, causal, scale, acc)
    outs = None
    if out is not None:
        inputs = {"x": given, "mask": mask, "bias": bias, "lengths": lengths, "scale": scale}
        outs = _check_out(name, out, x, dims, dtype or x.dtype, acc, return_lse, inputs)
    _load.require(name, x.device)

    op_name = f"{kind}_lse" if return_lse else kind
    args = {
        **score,
        "zero_masked_rows": _MASKED_ROWS[masked_rows],
        "dtype": dtype,
        "algorithm": _ALGORITHMS[algorithm],
    }
    if outs is None:
        return call_normalize(_load.op(op_name), kind, x, dims, **args)
    if torch.compiler.is_compiling():
        # Compilers cannot functionalise an op that returns what it was given; they fuse the copy.
        result = _load.op(op_name)(x, dims, **args)
        for target, source in zip(outs, result if return_lse else (result,), strict=True):
            target.copy_(source)
        return out
    targets = dict(zip(("out", "lse"), outs, strict=False))
    with torch._C._AutoDispatchBelowAutograd():  # nothing here wants a gradient: checked
        _load.op(op_name, "out")(x, dims, **args, **targets)
    return out


def _check_out(name, out, x, dims, dtype, acc, return_lse, inputs) -> tuple[Tensor, ...]:
    """out as a tuple of tensors, each safe to write to."""
    if return_lse and not (isinstance(out, tuple | list) and len(out) == 2):
        raise TypeError(f"{name}: expected out to be a pair (out, lse) with return_lse")
    outs = tuple(out) if return_lse else (out,)
    rows = tuple(size for d, size in enumerate(x.shape) if d not in dims)
    check.out_matches(name, "out", outs[0], x.shape, dtype, x)
    if return_lse:
        check.out_matches(name, "lse of out", outs[1], rows, acc, x)
    tensors = {arg: t for arg, t in inputs.items() if isinstance(t, Tensor)}
    check.no_grad_out(name, [*tensors.values(), *outs])
    if not check.has_addresses(*tensors.values(), *outs):
        return outs
    for arg, t in tensors.items():
        if not (arg == "x" and check.same_memory(outs[0], t)):
            check.disjoint(name, "out", outs[0], arg, t)
        if return_lse:
            check.disjoint(name, "lse of out", outs[1], arg, t)
    if return_lse:
        check.disjoint(name, "out", outs[0], "lse of out", outs[1])
    return outs
