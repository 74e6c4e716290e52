"""Arrays that are not torch tensors: NumPy, CuPy, and whatever else speaks DLPack.

Public functions take them without a copy and answer in the kind of their first argument. CuPy
arrays are worked on CuPy's current stream, so that a CuPy program keeps its order without
synchronising; other GPU arrays on torch's current stream, which DLPack orders against theirs.
Nothing but NumPy is imported here: an array's own package is looked up when the array comes.
"""

import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

_OURS = (Tensor, int, float)  # numbers: a compiler's symbolic ones can be asked nothing else


def is_foreign(value: Any) -> bool:
    """Whether `value` is an array that is not a torch tensor."""
    return not isinstance(value, Tensor) and (
        isinstance(value, np.ndarray) or hasattr(value, "__dlpack__")
    )


def any_foreign(*values: Any) -> bool:
    """Whether any of the values, or of the items of a tuple among them, is such an array."""
    for value in values:
        if value is None or isinstance(value, _OURS):
            continue
        if is_foreign(value) or (isinstance(value, tuple) and any_foreign(*value)):
            return True
    return False


def _package(array: Any) -> str:
    return type(array).__module__.partition(".")[0]


def _to_tensor(name: str, arg: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_to_tensor(name, arg, item) for item in value)
    if not is_foreign(value):
        return value
    if not isinstance(value, np.ndarray):
        return torch.from_dlpack(value)
    if any(stride < 0 for stride in value.strides):
        raise ValueError(
            f"{name}: expected {arg} without negative strides, which torch tensors cannot have; "
            "pass a copy"
        )
    if arg == "out" and not value.flags.writeable:
        raise ValueError(f"{name}: expected out to be writeable, got a read-only array")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")  # only out is written to
            return torch.from_numpy(value)
    except TypeError as error:
        raise TypeError(
            f"{name}: expected {arg} of a dtype torch shares with NumPy, got {value.dtype}"
        ) from error


def _answer(name: str, kind: Any) -> Callable[[Tensor], Any]:
    """What brings a tensor back to the kind of array that `kind` is, sharing its memory."""
    if isinstance(kind, np.ndarray):
        return _to_numpy
    own = getattr(kind, "__array_namespace__", None)
    namespace = own() if own is not None else sys.modules.get(_package(kind))
    from_dlpack = getattr(namespace, "from_dlpack", None)
    if from_dlpack is None:
        raise TypeError(
            f"{name}: expected an array whose package has from_dlpack, got {type(kind).__name__}; "
            "pass torch.from_dlpack(array)"
        )
    return from_dlpack


def _to_numpy(t: Tensor) -> np.ndarray:
    if t.dtype == torch.bfloat16:
        raise TypeError("NumPy has no bfloat16: pass a torch tensor, or another dtype=")
    return t.numpy()


def _stream(array: Any):
    """CuPy's current stream as a torch context; nothing to do for anything else."""
    if _package(array) != "cupy":
        return nullcontext()
    pointer = sys.modules["cupy"].cuda.get_current_stream().ptr
    device = torch.device("cuda", array.device.id)
    if pointer == 0:  # the legacy default stream, torch's own default
        return torch.cuda.stream(torch.cuda.default_stream(device))
    return torch.cuda.stream(torch.cuda.ExternalStream(pointer, device=device))


def torch_dtype(name: str, dtype: Any) -> Any:
    """A NumPy dtype (np.float32, "float16") as torch's; anything else as it is."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    try:
        return torch.from_numpy(np.empty(0, dtype)).dtype
    except TypeError as error:
        raise TypeError(f"{name}: expected a floating dtype, got {dtype!r}") from error


def call(name: str, function: Callable, x: Any, *args: Any, first: str = "x", **kwargs: Any) -> Any:
    """``function(x, *args, **kwargs)`` on tensors that share the arrays' memory; x is its argument
    `first`.

    The result comes back in the kind of x; what was given as ``out`` is returned as it was given.
    """
    out = kwargs.get("out")
    answer = _answer(name, x) if is_foreign(x) else None
    with _stream(x):
        if "dtype" in kwargs:
            kwargs["dtype"] = torch_dtype(name, kwargs["dtype"])
        tensors = {arg: _to_tensor(name, arg, value) for arg, value in kwargs.items()}
        result = function(_to_tensor(name, first, x), *args, **tensors)
        if out is not None:
            return out
        if answer is None:
            return result
        return tuple(map(answer, result)) if isinstance(result, tuple) else answer(result)
