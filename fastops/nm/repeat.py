"""The same product again, by the shortest way.

Decoding multiplies each weight by as many rows at every step, and each time right after memory that
has left nothing of Python in the caches: whatever attribute is looked at costs microseconds then,
and checking arguments, asking the dispatcher and finding a packing together as much as reading
4 MB of weights. So the last product of a weight is remembered, and one that differs from it in x's
numbers alone goes straight to the kernel. CPU only: on CUDA the device is busy meanwhile.
"""

import weakref

from torch import Tensor

from .. import _load
from .._autograd import straight
from .packing import packed, when_cleared
from .pattern import Pattern

_matmul = _load.fast_op("_nm_matmul")


class _Last:
    """A weight's last product. It holds the weight's memory, lest other memory come to lie at the
    same place unseen; it ends with the tensor `values`, or when the next product differs."""

    __slots__ = ("indices", "memory", "packing", "pattern", "shape", "state", "values")


_last: dict[int, _Last] = {}  # by id of values
when_cleared(_last.clear)


def _state(values: Tensor, indices: Tensor) -> tuple:
    return (
        values.data_ptr(), values.stride(), values._version, indices.data_ptr(), indices._version
    )  # fmt: skip


def remember(x: Tensor, values: Tensor, indices: Tensor, pattern: Pattern) -> None:
    """Keeps what a product read, for :func:`product`. x and the weight have been checked."""
    if not straight(x, values, indices) or x.device.type != "cpu" or x.numel() == 0:
        return
    if values.is_inference() or indices.is_inference():  # whose changes cannot be seen
        return
    key, features = id(values), x.shape[-1]
    kind, structure, weights = packed(values, indices, pattern, features, x.numel() // features)
    last = _last[key] = _Last()
    last.values = weakref.ref(values, lambda _: _last.pop(key, None))
    last.memory = values.untyped_storage(), indices.untyped_storage()
    last.state = _state(values, indices)
    last.indices, last.pattern, last.shape = indices, pattern, x.shape
    last.packing = weights, structure, values.shape[0], features, kind


def product(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    pattern: Pattern,
    bias: Tensor | None,
    activation: int,
) -> Tensor | None:
    """x times the weight where that is its last product again and nobody but the kernel need see
    it; None where it is not, or where the kernel refuses an argument."""
    if not straight(x, values, bias):
        return None
    last = _last.get(id(values))
    if (
        last is None
        or x.shape != last.shape
        or indices is not last.indices
        or pattern != last.pattern
        or _state(values, indices) != last.state
    ):
        return None
    weights, structure, out, features, kind = last.packing
    n, m = pattern
    try:
        return _matmul(x, weights, structure, bias, out, features, n, m, kind, activation)
    except (RuntimeError, TypeError):
        return None  # the checks say what is wrong
