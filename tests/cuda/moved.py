"""Runs tests that are written for CPU tensors on another device: FASTOPS_TESTS_ON=cuda.

Under the mode every fastops op is carried there: the storages of its tensors are copied with their
layout, the op runs on the copies, and what it made or wrote comes back. So a family's ordinary
tests judge its CUDA kernels without knowing of them, as they do the emulated ones (docs/simt.md).
With FASTOPS_TESTS_ON=cpu the copies stay on the CPU, which tries the carrying itself.

Not for tests that take the `device` fixture, which run on a GPU themselves, nor for what looks
whether a mode is active, as the check of nm_compress does.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = os.environ.get("FASTOPS_TESTS_ON")


def place(t: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """t's view of another storage."""
    empty = torch.empty(0, dtype=t.dtype, device=storage.device)
    return empty.set_(storage, t.storage_offset(), t.size(), t.stride())


def copy_of(storage: torch.UntypedStorage, device: str) -> torch.UntypedStorage:
    copy = torch.UntypedStorage(storage.nbytes(), device=device)
    copy.copy_(storage)
    return copy


class Carry(TorchDispatchMode):
    """Has fastops ops on CPU tensors run on `device`; `count` says how many did."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.count = device, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "fastops":
            return func(*args, **kwargs)
        there: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        carried: list[tuple[Tensor, Tensor]] = []

        def carry(t: Any) -> Any:
            if not isinstance(t, Tensor) or t.device.type != "cpu":
                return t
            storage = t.untyped_storage()
            key = storage._cdata
            if key not in there:
                there[key] = storage, copy_of(storage, self.device)
            carried.append((t, place(t, there[key][1])))
            return carried[-1][1]

        def bring(t: Any) -> Any:
            if not isinstance(t, Tensor) or not carried:
                return t
            for here, copy in carried:  # an output that was given
                if copy.data_ptr() == t.data_ptr() and copy.shape == t.shape and t.numel():
                    return here
            return place(t, copy_of(t.untyped_storage(), "cpu"))

        result = func(*tree_map(carry, args), **tree_map(carry, kwargs))
        self.count += bool(carried)
        if any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments):
            for storage, copy in there.values():
                storage.copy_(copy)
        return tree_map(bring, result)
