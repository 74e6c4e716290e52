"""What BlockMask takes, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _checks
from . import _lists

if TYPE_CHECKING:
    from .block_mask import BlockMask

BLOCK_SIZES = (16, 32, 64, 128)


def integer(name: str, arg: str, value: Any, least: int) -> int:
    value = _checks.integer(name, f"{arg} to be an int", value)
    if value < least:
        raise ValueError(f"{name}: expected {arg} >= {least}, got {value}")
    return value


def _pair(name: str, arg: str, value: Any) -> tuple[int, int]:
    """One number for both, or two."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) for n in pair):
        raise TypeError(f"{name}: expected {arg} to be an int or two, got {value!r}")
    return pair


def block_pair(name: str, size: Any) -> tuple[int, int]:
    """Sizes of queries and keys of a block."""
    pair = _pair(name, "block_size", size)
    if not set(pair) <= set(BLOCK_SIZES):
        raise ValueError(f"{name}: expected block sizes of {BLOCK_SIZES}, got {pair}")
    return pair


def length_pair(name: str, lengths: Any) -> tuple[int, int]:
    """(Sq, Skv)."""
    pair = _pair(name, "seq_lens", lengths)
    if min(pair) < 0 or max(pair) >= 2**31:
        raise ValueError(f"{name}: expected lengths in [0, 2**31), got {pair}")
    return pair


def four_dims(name: str, arg: str, t: Any) -> tuple[Tensor, int, int]:
    """A bool tensor of 2 to 4 dims as [batch, heads, ...], and these two."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected {arg} to be a tensor, got {type(t).__name__}")
    if t.dtype != torch.bool:
        raise TypeError(f"{name}: expected {arg} of dtype torch.bool, got {t.dtype}")
    if not 2 <= t.ndim <= 4:
        raise ValueError(f"{name}: expected {arg} of 2 to 4 dims, got shape {tuple(t.shape)}")
    if (t.ndim == 4 and 0 in t.shape[:2]) or (t.ndim == 3 and t.shape[0] == 0):
        raise ValueError(f"{name}: expected {arg} of a head at least, got shape {tuple(t.shape)}")
    t = t[(None,) * (4 - t.ndim)]
    return t, t.shape[0], t.shape[1]


def check_lists(mask: BlockMask) -> None:
    """Sizes, dtypes and devices; and the values, where they can be seen without a wait."""
    name = "fastops.BlockMask"
    for arg in ("batch", "heads"):
        integer(name, arg, getattr(mask, arg), 1)
    ranks = {"offsets": 1, "indices": 1, "partial_offsets": 1, "patterns": 1, "bits": 2}
    for arg, rank in ranks.items():
        t = getattr(mask, arg)
        _checks.is_tensor(name, arg, t)
        _checks.is_dtype(name, arg, t, torch.int64 if "offsets" in arg else torch.int32)
        if t.ndim != rank or not t.is_contiguous():
            raise ValueError(
                f"{name}: expected {arg} contiguous of {rank} dims, got shape {tuple(t.shape)}"
            )
        if t.device != mask.offsets.device:
            raise ValueError(
                f"{name}: expected {arg} on {mask.offsets.device} as offsets are, got {t.device}"
            )
    rows = mask.batch * mask.heads * mask.q_blocks
    for arg in ("offsets", "partial_offsets"):
        if getattr(mask, arg).numel() != rows + 1:
            raise ValueError(
                f"{name}: expected {arg} of {rows + 1} elements (batch * heads * q_blocks + 1), "
                f"got {getattr(mask, arg).numel()}"
            )
    words = mask.block_size[0] * mask.block_size[1] // _lists.WORD
    if mask.bits.shape[1] != words:
        raise ValueError(
            f"{name}: expected bits of {words} words a pattern, got {mask.bits.shape[1]}"
        )
    if mask.device.type == "cpu" and _checks.is_plain(mask.offsets):
        _check_values(name, mask)


def _check_values(name: str, mask: BlockMask) -> None:
    offsets, indices, partial_offsets, patterns = mask.lists
    for arg, edges, most in [
        ("offsets", offsets, indices.numel()),
        ("partial_offsets", partial_offsets, patterns.numel()),
    ]:
        if int(edges[0]) != 0 or int(edges[-1]) > most or bool((edges.diff() < 0).any()):
            raise ValueError(f"{name}: expected {arg} to rise from 0 to at most {most}")
    if bool((partial_offsets.diff() > offsets.diff()).any()):
        raise ValueError(f"{name}: expected no row with more partial blocks than blocks")
    used = indices[: int(offsets[-1])]
    _checks.within(name, "indices", used, 0, mask.kv_blocks - 1)
    _checks.within(
        name, "patterns", patterns[: int(partial_offsets[-1])], 0, mask.bits.shape[0] - 1
    )
    rows = offsets.numel() - 1
    blocks = _lists.to_blocks(mask.lists, rows, mask.kv_blocks, mask.bits.shape[0])
    key = blocks.rows * max(mask.kv_blocks, 1) + blocks.columns
    key = key[: used.numel()]
    if key.unique().numel() != key.numel():
        raise ValueError(f"{name}: expected each block at most once in its row")
