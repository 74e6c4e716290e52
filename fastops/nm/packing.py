"""Packings: what kernels read in place of the stored form. Made at first use, kept while the
weight lives unchanged, never saved.

A packing depends on memory, not on a Python object: under torch.compile, and for each view of a
parameter, an op is handed new tensors over the same storage. So entries are found by storage, hold
it weakly, and end with the first version of it that they have not seen.
"""

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .. import _load
from .pattern import Pattern

STORED, STORED_TRANSPOSED = 0, 4  # kinds that read the stored form itself: nothing to pack


@dataclass
class _Entry:
    storage: StorageWeakRef
    version: int
    content: dict[Any, Any] = field(default_factory=dict)


@dataclass
class Packing:
    structure: Tensor
    weights: Tensor
    ready: Any = None  # CUDA: (stream, event) of the kernels that made it


_structures: dict[tuple, _Entry] = {}  # by the indices' memory: kind -> (structure, source)
_weights: dict[tuple, _Entry] = {}  # by the values' memory: (indices, kind) -> Packing
_lock = threading.Lock()
_also_clear: list[Callable[[], None]] = []
_pack, _gather = _load.fast_op("_nm_pack"), _load.fast_op("_nm_gather")
_kind = _load.fast_op("_nm_kind")


def _key(t: Tensor) -> tuple:
    return (t.untyped_storage()._cdata, t.storage_offset(), t.dtype, t.shape, t.stride())


def _entry(table: dict[tuple, _Entry], t: Tensor) -> _Entry:
    """The entry of t's memory as it is now."""
    key = _key(t)
    entry = table.get(key)
    if entry is None:
        for gone in [k for k, e in table.items() if e.storage.expired()]:
            del table[gone]
    if entry is None or entry.version != t._version or entry.storage.expired():
        entry = table[key] = _Entry(StorageWeakRef(t.untyped_storage()), t._version)
    return entry


@lru_cache(maxsize=4096)
def _kind_of(device, dtype, out, pattern, in_features, rows, transposed) -> int:
    like = torch.empty(out, 0, dtype=dtype, device=device)
    return _kind(like, pattern.n, pattern.m, in_features, rows, transposed)


@lru_cache(maxsize=1)
def _warn_uncached() -> None:
    warnings.warn(
        "fastops.nm_linear: a weight made under torch.inference_mode() is packed at every call, "
        "because changes to it cannot be seen; make it outside",
        stacklevel=5,
    )


def make(values, indices, pattern, in_features, kind):
    structure, source = _pack(indices, pattern.n, pattern.m, in_features, kind)
    return structure, source, _gather(values, source)


def packed(
    values: Tensor,
    indices: Tensor,
    pattern: Pattern,
    in_features: int,
    rows: int,
    transposed: bool = False,
) -> tuple[int, Tensor, Tensor]:
    """(kind, structure, weights) for a product with so many rows."""
    device, kept = values.device, pattern.kept(in_features)
    if values.ndim != 2 or values.shape[1] != kept or in_features % pattern.m:
        raise RuntimeError(
            f"fastops.nm_linear: expected values of shape [out_features, {kept}] for {pattern} of "
            f"{in_features}, got {tuple(values.shape)}"
        )
    few = rows if rows < 4096 else 4096  # beyond, no choice depends on the exact count
    kind = _kind_of(device, values.dtype, values.shape[0], pattern, in_features, few, transposed)
    values = values.detach()
    if kind in (STORED, STORED_TRANSPOSED):
        return kind, indices, values if values.is_contiguous() else values.contiguous()
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if values.is_inference() or indices.is_inference() or capturing:
        if not capturing:
            _warn_uncached()
        structure, _, weights = make(
            values.contiguous(), indices.contiguous(), pattern, in_features, kind
        )
        return kind, structure, weights
    packing = _cached(values, indices, pattern, in_features, kind)
    if packing.ready is not None:
        stream, event = packing.ready
        current = torch.cuda.current_stream(device)
        if current != stream:
            current.wait_event(event)
    return kind, packing.structure, packing.weights


def _cached(values, indices, pattern, in_features, kind) -> Packing:
    key = (_key(indices), indices._version, pattern, in_features, kind)
    with _lock:
        entry = _entry(_weights, values)
        packing = entry.content.get(key)
        if packing is not None:
            return packing
        # Weights that have changed once will change again: keep how to gather them.
        trained = values._version > 0
        structures = _entry(_structures, indices).content
        found = structures.get((pattern, in_features, kind))
        if found is None or found[1] is None:
            structure, source = _pack(indices.contiguous(), pattern.n, pattern.m, in_features, kind)
        else:
            structure, source = found
        structures[pattern, in_features, kind] = (structure, source if trained else None)
        packing = Packing(structure, _gather(values.contiguous(), source))
        if values.device.type == "cuda":
            stream = torch.cuda.current_stream(values.device)
            packing.ready = (stream, stream.record_event())
        entry.content[key] = packing
        return packing


def when_cleared(clear: Callable[[], None]) -> None:
    """Has :func:`clear_packings` call `clear` too."""
    _also_clear.append(clear)


def clear_packings() -> None:
    """Frees every packing; they are made anew when needed.

    Needed after writes that torch does not count: through ``.data``, NumPy or DLPack. In-place ops,
    optimizers and ``load_state_dict`` are seen.
    """
    with _lock:
        _structures.clear()
        _weights.clear()
    for clear in _also_clear:
        clear()
