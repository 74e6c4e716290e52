"""nm_mask, nm_prune, nm_compress and nm_linear: arguments checked, ops called."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _checks as check
from .. import _load
from . import ops, repeat
from . import pattern as patterns
from .weight import NONE_BAD, NMWeight, is_weight_dtype

__all__ = ["nm_compress", "nm_linear", "nm_mask", "nm_prune"]

Activation = Literal["relu", "gelu", "silu"]
ACTIVATIONS = {None: 0, "relu": ops.RELU, "gelu": ops.GELU, "silu": ops.SILU}

_linear = _load.op("nm_linear")


def _check_weight(name: str, w, pattern) -> patterns.Pattern:
    check.is_tensor(name, "w", w)
    is_weight_dtype(name, "w", w)
    pattern = patterns.parse(name, pattern)
    if w.ndim != 2:
        raise ValueError(
            f"{name}: expected w of shape [out_features, in_features], got {tuple(w.shape)}"
        )
    patterns.divides(name, pattern, w.shape[1])
    return pattern


def _check_like(name: str, arg: str, t, w: Tensor) -> None:
    check.is_tensor(name, arg, t)
    if t.device != w.device:
        raise ValueError(f"{name}: expected {arg} on {w.device} as w is, got {t.device}")
    if t.shape != w.shape:
        raise ValueError(
            f"{name}: expected {arg} of w's shape {tuple(w.shape)}, got {tuple(t.shape)}"
        )


def _select_args(name: str, w, pattern, scores) -> patterns.Pattern:
    pattern = _check_weight(name, w, pattern)
    if scores is not None:
        _check_like(name, "scores", scores, w)
        is_weight_dtype(name, "scores", scores)
    _load.require(name, w.device)
    return pattern


def nm_mask(w: Tensor, pattern: str, *, scores: Tensor | None = None) -> Tensor:
    """Which elements N:M pruning keeps: in each group of M consecutive in_features the N of the
    largest score. Ties: the larger ``|w|``, then the lower index. NaN is the largest, +0 and -0
    are equal.

    Args:
        w: ``[out_features, in_features]``, float32, float16 or bfloat16, any strides.
        pattern: ``"N:M"``, 1 <= N <= M <= 32, M a divisor of in_features.
        scores: of w's shape, any of these dtypes; default ``|w|``. Wanda's are ``|w| * norm(x)``
            (Sun et al.: A Simple and Effective Pruning Approach for LLMs, section 3).

    Returns:
        bool of w's shape, contiguous.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong pattern or shape.

    One pass over w on its own device; no gradient.
    """
    pattern = _select_args("fastops.nm_mask", w, pattern, scores)
    return _load.op("nm_mask")(w.detach(), *pattern, None if scores is None else scores.detach())


def nm_prune(w: Tensor, pattern: str, *, scores: Tensor | None = None) -> Tensor:
    """``w`` with 0 wherever :func:`nm_mask` is False; arguments and errors as there.

    The gradient of w is that of the kept elements, 0 elsewhere.
    """
    pattern = _select_args("fastops.nm_prune", w, pattern, scores)
    scores = None if scores is None else scores.detach()
    if torch.is_grad_enabled() and w.requires_grad:
        mask = _load.op("nm_mask")(w.detach(), *pattern, scores)
        return torch.where(mask, w, torch.zeros((), dtype=w.dtype, device=w.device))
    return _load.op("nm_prune")(w, *pattern, scores)


def nm_compress(w: Tensor, pattern: str, *, mask: Tensor | None = None) -> NMWeight:
    """The N:M sparse form of a weight that satisfies its pattern.

    Args:
        w: ``[out_features, in_features]``, float32, float16 or bfloat16, any strides.
        pattern: ``"N:M"``, 1 <= N <= M <= 32, M a divisor of in_features.
        mask: bool of w's shape, at most N True per group: what to keep, zeros included; the rest
            of w is left out. Default: what is not zero (-0.0 is zero, NaN is not).

    Returns:
        :class:`fastops.NMWeight` on w's device. A group with fewer than N kept elements also
        stores zeros, at its lowest free places.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong pattern or shape; a group with more than N kept elements, the first of
            which is named. On CUDA this check waits for the device.

    One pass over w on its own device; no gradient.
    """
    name = "fastops.nm_compress"
    pattern = _check_weight(name, w, pattern)
    if mask is not None:
        _check_like(name, "mask", mask, w)
        check.is_dtype(name, "mask", mask, torch.bool)
    _load.require(name, w.device)
    values, indices, bad = _load.op("nm_compress")(w.detach(), *pattern, mask)
    if check.is_plain(bad) and int(bad) != NONE_BAD:
        row, group = divmod(int(bad), w.shape[1] // pattern.m)
        begin, end = group * pattern.m, (group + 1) * pattern.m
        part = w.detach()[row, begin:end] != 0 if mask is None else mask[row, begin:end]
        raise ValueError(
            f"{name}: expected at most {pattern.n} {'nonzero' if mask is None else 'True'} in each "
            f"group of {pattern.m}, got {int(part.sum())} in row {row}, group {group} (columns "
            f"{begin} to {end - 1}); prune first: fastops.nm_prune(w, '{pattern}')"
        )
    return NMWeight(values, indices, pattern, w.shape[1], _checked=True)


def nm_linear(
    x: Tensor,
    weight: NMWeight,
    bias: Tensor | None = None,
    activation: Activation | None = None,
) -> Tensor:
    """``activation(x @ weight.dense().T + bias)`` without making the dense weight.

    Sums are fp32; the result is rounded once. On the CPU an element of x that a row of the weight
    does not keep is never read for it: NaN or infinity there stays out of that output. Matrix units
    (CUDA, AMX) and pairs of bf16 multiply zeros as well: there it may make that output NaN, as in a
    dense product.

    Args:
        x: ``[..., in_features]`` of the weight's dtype and device, any strides, any number of rows.
        weight: :class:`fastops.NMWeight`.
        bias: ``[out_features]`` of x's dtype.
        activation: ``"relu"``, ``"gelu"`` (exact) or ``"silu"``, applied to the fp32 sum; where a
            gradient is wanted, gelu and silu run apart, on the rounded sum.

    Returns:
        ``[..., out_features]``, x's dtype, contiguous.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape or device.

    Gradients: x through the transposed sparse weight; ``weight.values``, of the pattern only; bias.
    Cost: rows * out_features * in_features * N / M multiply-adds. The first call on a weight also
    packs it for the device; the packing is kept while the weight lives unchanged.
    """
    name = "fastops.nm_linear"
    if not isinstance(weight, NMWeight):
        raise TypeError(
            f"{name}: expected weight to be a fastops.NMWeight, got {type(weight).__name__}"
        )
    return linear(name, x, weight.values, weight.indices, weight._pattern, weight.in_features, bias,
                  activation)  # fmt: skip


def linear(name, x, values, indices, pattern, in_features, bias, activation) -> Tensor:
    """nm_linear of a weight in parts."""
    if activation is None or type(activation) is str:
        code = ACTIVATIONS.get(activation)
        if code is not None:
            y = repeat.product(x, values, indices, pattern, bias, code)
            if y is not None:
                return y
    check.is_tensor(name, "x", x)
    # What autocast will make of the dtypes is its own affair.
    if x.dtype != values.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"{name}: expected x of dtype {values.dtype} as weight is, got {x.dtype}")
    if x.device != values.device:
        raise ValueError(f"{name}: expected x on {values.device} as weight is, got {x.device}")
    if x.ndim == 0 or x.shape[-1] != in_features:
        got = x.shape[-1] if x.ndim else "a tensor of 0 dims"
        raise ValueError(
            f"{name}: expected x.shape[-1] == {in_features} (in_features of weight), got {got}"
        )
    if bias is not None:
        check.is_tensor(name, "bias", bias)
        if bias.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"{name}: expected bias of dtype {x.dtype} as x is, got {bias.dtype}")
        check.same_device(name, "bias", bias, x)
        if bias.ndim != 1 or bias.shape[0] != values.shape[0]:
            raise ValueError(
                f"{name}: expected bias of shape ({values.shape[0]},), got {tuple(bias.shape)}"
            )
    if activation is not None and not isinstance(activation, str):
        raise TypeError(
            f"{name}: expected activation to be a string, got {type(activation).__name__}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{name}: expected activation to be 'relu', 'gelu', 'silu' or None, got {activation!r}"
        )
    _load.require(name, x.device)
    if activation in ("gelu", "silu") and torch.is_grad_enabled():
        wants = x.requires_grad or values.requires_grad
        if wants or (bias is not None and bias.requires_grad):
            # Kept for the backward pass, instead of being computed again there.
            before = _linear(x, values, indices, pattern.n, pattern.m, bias, 0)
            return F.gelu(before) if activation == "gelu" else F.silu(before)
    y = _linear(x, values, indices, pattern.n, pattern.m, bias, ACTIVATIONS[activation])
    repeat.remember(x, values, indices, pattern)
    return y
