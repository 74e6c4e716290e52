"""Argument checks shared by the families' public functions.

Every message reads ``fastops.<op>: expected <what>, got <what>``: TypeError for a wrong type or
dtype, ValueError for a wrong value or shape. All run before any tensor is touched.
"""

import math
from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_FLOATING_NAMES = "float32, float64, float16 or bfloat16"
_OVERLAP_WORK = 100_000  # bound on the exact overlap search; beyond it tensors count as overlapping


def shape_of(t: Tensor) -> tuple[int, ...]:
    return tuple(t.shape)


def is_tensor(name: str, arg: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name}: expected {arg} to be a tensor or an array, got {type(value).__name__}"
        )
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected {arg} of a strided layout, got {value.layout}")


def is_bool(name: str, arg: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected {arg} to be a bool, got {type(value).__name__}")


def is_floating(name: str, arg: str, t: Tensor) -> None:
    if t.dtype not in FLOATING:
        raise TypeError(f"{name}: expected {arg} of dtype {_FLOATING_NAMES}, got {t.dtype}")


def is_dtype(name: str, arg: str, t: Tensor, *allowed: torch.dtype) -> None:
    if t.dtype not in allowed:
        names = " or ".join(dict.fromkeys(map(str, allowed)))
        raise TypeError(f"{name}: expected {arg} of dtype {names}, got {t.dtype}")


def same_device(name: str, arg: str, t: Tensor, x: Tensor) -> None:
    if t.device != x.device:
        raise ValueError(f"{name}: expected {arg} on {x.device} as x is, got {t.device}")


def integer(name: str, expected: str, value: Any) -> int:
    """An int, or what is as good as one (of NumPy, say), and no bool."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    return value.__index__()


def floating_dtype(name: str, dtype: Any) -> None:
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name}: expected dtype to be a torch.dtype, got {dtype!r}")
    if dtype not in FLOATING:
        raise TypeError(f"{name}: expected dtype {_FLOATING_NAMES}, got {dtype}")


def one_of(name: str, arg: str, value: Any, choices: Sequence[Any]) -> None:
    """`value` is one of `choices`, whose first gives the expected type in the message."""
    if not isinstance(value, str | bool):
        raise TypeError(
            f"{name}: expected {arg} to be one of {_listed(choices)}, got {type(value).__name__}"
        )
    if value not in choices:
        raise ValueError(f"{name}: expected {arg} to be one of {_listed(choices)}, got {value!r}")


def _listed(choices: Sequence[Any]) -> str:
    return ", ".join(repr(choice) for choice in choices)


def dims(name: str, dim: Any, rank: int) -> tuple[int, ...]:
    """`dim` as ascending non-negative dims; a 0-d tensor has the one dim 0 (or -1), as in torch."""
    given = tuple(dim) if isinstance(dim, tuple | list) else (dim,)
    if not given:
        raise ValueError(f"{name}: expected at least one dim, got {dim!r}")
    bound = max(rank, 1)
    wrapped = []
    for d in given:
        # index: a compiler's symbolic dim becomes the number it stands for.
        d = index(integer(name, "dim to be an int or a tuple of ints", d))
        if not -bound <= d < bound:
            raise ValueError(
                f"{name}: expected dim in [{-bound}, {bound - 1}] for x of {rank} dims, got {d}"
            )
        wrapped.append(d % bound)
    if len(set(wrapped)) != len(wrapped):
        raise ValueError(f"{name}: expected distinct dims, got {dim!r}")
    return tuple(sorted(wrapped))


def broadcasts(name: str, arg: str, t: Tensor, shape: tuple[int, ...], what: str) -> None:
    """`t` broadcasts to `shape` by NumPy's rules, without growing it."""
    size = shape_of(t)
    fits = len(size) <= len(shape) and all(
        a == b or a == 1 for a, b in zip(reversed(size), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name}: expected {arg} to broadcast to {what} {tuple(shape)}, got shape {size}"
        )


def per_row(name: str, arg: str, t: Tensor, x: Tensor, dims: tuple[int, ...]) -> None:
    """`t` has one value per row of x: x's rank with size 1 in the reduced dims, or broadcasting to
    the row shape (x's shape without the reduced dims)."""
    shape = shape_of(x)
    if t.ndim == x.ndim:
        kept = tuple(1 if d in dims else size for d, size in enumerate(shape))
        broadcasts(name, arg, t, kept, "one value per row,")
    else:
        rows = tuple(size for d, size in enumerate(shape) if d not in dims)
        broadcasts(name, arg, t, rows, "one value per row,")


def is_plain(t: Tensor) -> bool:
    """Whether t is memory and nothing else: not fake, being traced, or inside a transform."""
    return (
        type(t) in (Tensor, torch.nn.Parameter)
        and t.device.type != "meta"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
        and not torch._C._len_torch_dispatch_stack()
    )


def has_addresses(*tensors: Tensor) -> bool:
    return all(is_plain(t) for t in tensors)


def within(name: str, arg: str, t: Tensor, low: int, high: int) -> None:
    """The values of t lie in [low, high], where they can be seen without a wait."""
    if t.numel() == 0 or t.device.type != "cpu" or not is_plain(t):
        return
    least, most = (int(v) for v in torch.aminmax(t))
    if least < low or most > high:
        bad = least if least < low else most
        raise ValueError(f"{name}: expected {arg} in [{low}, {high}], got {bad}")


def out_matches(name: str, arg: str, out: Any, shape: tuple[int, ...], dtype, x: Tensor) -> None:
    """An out= tensor has the result's shape, dtype and device, and distinct elements."""
    is_tensor(name, arg, out)
    is_dtype(name, arg, out, dtype)
    same_device(name, arg, out, x)
    if shape_of(out) != tuple(shape):
        raise ValueError(f"{name}: expected {arg} of shape {tuple(shape)}, got {shape_of(out)}")
    reach = 0
    for stride, size in sorted(zip(out.stride(), out.shape, strict=True)):
        if size > 1 and stride <= reach and out.numel():
            raise ValueError(
                f"{name}: expected {arg} without elements that share memory, got strides "
                f"{out.stride()} for shape {shape_of(out)}"
            )
        reach += stride * (size - 1)


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether a and b are the very same elements in the same order."""
    return (
        a.data_ptr() == b.data_ptr()
        and a.dtype == b.dtype
        and a.shape == b.shape
        and a.stride() == b.stride()
    )


class _Span:
    """A tensor's memory as NumPy sees it; only addresses are ever used, so any device will do."""

    def __init__(self, t: Tensor):
        size = t.element_size()
        self.__array_interface__ = {
            "version": 3,
            "data": (t.data_ptr(), True),
            "shape": shape_of(t),
            "strides": tuple(stride * size for stride in t.stride()),
            "typestr": f"|V{size}",
        }


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether a and b share a byte: exact, but for searches too long, which count as sharing."""
    if a.numel() == 0 or b.numel() == 0 or a.device != b.device:
        return False
    a_begin, b_begin = a.data_ptr(), b.data_ptr()
    if a_begin + _extent(a) <= b_begin or b_begin + _extent(b) <= a_begin:
        return False
    try:
        return np.shares_memory(np.asarray(_Span(a)), np.asarray(_Span(b)), _OVERLAP_WORK)
    except np.exceptions.TooHardError:
        return True


def _extent(t: Tensor) -> int:
    last = sum(stride * (size - 1) for stride, size in zip(t.stride(), t.shape, strict=True))
    return (last + 1) * t.element_size()


def disjoint(name: str, arg: str, out: Tensor, other_arg: str, other: Tensor) -> None:
    if overlap(out, other):
        raise ValueError(
            f"{name}: expected {arg} and {other_arg} in separate memory, got tensors that overlap"
        )


def no_grad_out(name: str, inputs: Sequence[Tensor | None]) -> None:
    """out= cannot be differentiated through, so nothing that goes in may want a gradient."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        raise RuntimeError(
            f"{name}: out= does not support automatic differentiation, but an argument requires "
            "grad; use torch.no_grad() or leave out= away"
        )


def row_count(shape: Sequence[int], dims: tuple[int, ...]) -> int:
    """Elements per row."""
    return math.prod([shape[d] for d in dims]) if shape else 1
