"""BlockMask together with another, and drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _lists
from ._arguments import integer
from ._lists import FULL, NONE, Blocks

if TYPE_CHECKING:
    from .block_mask import BlockMask

_DRAWN = (24, 64)  # rows and columns of str(), at most
_SHADES = " ░▒▓█"


class Combining:
    """Methods of BlockMask."""

    def __and__(self, other: Any) -> BlockMask:
        """What both keep. In time and memory of the blocks of both.

        Does not wait for the device: on a GPU the lists have room for whatever may be kept, and
        patterns are not shared.
        """
        return _combined(self, other, NONE, FULL, torch.bitwise_and)

    def __or__(self, other: Any) -> BlockMask:
        """What either keeps. Cost as that of ``&``."""
        return _combined(self, other, FULL, NONE, torch.bitwise_or)

    @property
    def density(self) -> float:
        """Listed blocks, partial ones counted whole, in all there are; 0 where there are none.
        Waits for the device."""
        cells = self.batch * self.heads * self.q_blocks * self.kv_blocks
        return int(self.offsets[-1]) / cells if cells else 0.0

    def __repr__(self) -> str:
        return (
            f"BlockMask(batch={self.batch}, heads={self.heads}, seq_lens={self.seq_lens}, "
            f"block_size={self.block_size}, device={self.device})"
        )

    def __str__(self) -> str:
        """Draws the first sample's first head: darker where more blocks are kept."""
        share = self._picture()[0, 0]
        lines = [f"{self!r}, {self.density:.1%} of the blocks"]
        if 0 in share.shape:
            return lines[0]
        drawn = tuple(min(n, most) for n, most in zip(share.shape, _DRAWN, strict=True))
        cells = torch.nn.functional.adaptive_avg_pool2d(share[None], drawn)[0]
        shade = (cells * (len(_SHADES) - 1)).ceil().int().tolist()
        return "\n".join(lines + ["".join(_SHADES[s] for s in row) for row in shade])

    def plot(self, path: str | Path, batch: int = 0, head: int = 0) -> None:
        """Saves a picture of a head's blocks, whole ones darker. Needs matplotlib.

        Raises:
            TypeError, ValueError: a sample or a head that the mask does not have, which has
                every one where it has one for all.
        """
        from matplotlib.figure import Figure

        at = []
        for arg, value, size in (("batch", batch, self.batch), ("head", head, self.heads)):
            integer("fastops.BlockMask.plot", arg, value, 0)
            if value >= size > 1:
                raise ValueError(f"fastops.BlockMask.plot: expected {arg} < {size}, got {value}")
            at.append(min(value, size - 1))
        axes = (figure := Figure(figsize=(6, 6), layout="tight")).add_subplot()
        picture = self._picture()[at[0], at[1]]
        axes.imshow(picture.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xlabel="key blocks", ylabel="query blocks", title=f"{self.density:.1%} of blocks")
        figure.savefig(path)

    def _picture(self) -> Tensor:
        """float32 on the CPU: 0 left out, a half partial, 1 whole."""
        return self.to_block_map().cpu() * 0.5


def _combined(
    a: BlockMask, b: Any, wins: int, yields: int, join: Callable[[Tensor, Tensor], Tensor]
) -> BlockMask:
    """`wins` beside anything is itself, `yields` beside anything is that."""
    if not isinstance(b, type(a)):
        return NotImplemented
    name = "fastops.BlockMask"
    for what in ("seq_lens", "block_size", "device"):
        if getattr(a, what) != getattr(b, what):
            raise ValueError(
                f"{name}: expected masks of the same {what}, got {getattr(a, what)} and "
                f"{getattr(b, what)}"
            )
    for what in ("batch", "heads"):
        if len({getattr(a, what), getattr(b, what), 1}) > 2:
            raise ValueError(
                f"{name}: expected masks whose {what} is equal or 1, got {getattr(a, what)} and "
                f"{getattr(b, what)}"
            )
    batch, heads = max(a.batch, b.batch), max(a.heads, b.heads)
    key, left, right = _together(a, b, batch, heads, either=yields == NONE)
    pattern = torch.where(left == yields, torch.where(right >= 0, right + len(a.bits), right), left)
    pattern = torch.where((left == wins) | (right == wins), wins, pattern)
    rooms = [
        len(m.patterns) * (batch // m.batch) * (heads // m.heads) * (len(m.bits) > 0)
        for m in (a, b)
    ]
    pairs, which = _pairs(left, right, (left >= 0) & (right >= 0), max(len(b.bits), 1), min(rooms))
    if len(pairs):
        joined = join(a.bits[pairs // len(b.bits)], b.bits[pairs % len(b.bits)])
        kind = torch.arange(len(pairs), device=a.device) + len(a.bits) + len(b.bits)
        kind = torch.where((joined == 0).all(1), NONE, kind)
        kind = torch.where((joined == -1).all(1), FULL, kind)
        pattern = torch.where(which < 0, pattern, kind[which.clamp(min=0)])
        bits = torch.cat([a.bits, b.bits, joined])
    else:
        bits = torch.cat([a.bits, b.bits])
    if _lists.may_look(key):
        partial = pattern >= 0
        used, which = pattern[partial].unique(return_inverse=True)
        first, shared = _lists.share(bits[used])
        pattern[partial] = shared[which]
        bits = bits[used][first]
    width = max(a.kv_blocks, 1)
    blocks = Blocks(key // width, key % width, pattern)
    room = None if _lists.may_look(key) else sum(rooms)
    return a._of_blocks(blocks, bits, a.block_size, a.seq_lens, batch, heads, room)


def _together(
    a: BlockMask, b: BlockMask, batch: int, heads: int, either: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(key, left, right): the place of each block that `a`, or `either`, lists in a grid of all,
    and its pattern in both, FULL or NONE. What does not count is past the grid."""
    rows, width = batch * heads * a.q_blocks, max(a.kv_blocks, 1)
    ours, theirs = (
        _lists.spread(
            _lists.to_blocks(m.lists, m.batch * m.heads * m.q_blocks, m.kv_blocks, len(m.bits)),
            m.q_blocks, (m.batch, m.heads), (batch, heads),
        )
        for m in (a, b)
    )  # fmt: skip
    # What does not count is at the end, for each mask at a place of its own.
    a_key = torch.where(ours.rows < rows, ours.rows * width + ours.columns, rows * width)
    b_key = torch.where(theirs.rows < rows, theirs.rows * width + theirs.columns, rows * width + 1)
    key, left, right = a_key, ours.patterns, _lists.find(a_key, b_key, theirs.patterns)
    if either:  # what only the other one keeps is kept too
        alone = _lists.find(b_key, a_key, ours.patterns) == NONE
        key = torch.cat([key, torch.where(alone, b_key, rows * width)])
        left = torch.cat([left, torch.full_like(theirs.patterns, NONE)])
        right = torch.cat([right, theirs.patterns])
    return key, left, right


def _pairs(
    left: Tensor, right: Tensor, both: Tensor, base: int, room: int
) -> tuple[Tensor, Tensor]:
    """(pairs, which): ``left * base + right`` where `both`, and which of those each is, or -1.
    Where values cannot be looked at there are `room` pairs."""
    key = torch.where(both, left * base + right, 0)
    if _lists.may_look(key):
        pairs, at = key[both].unique(return_inverse=True)
        return pairs, torch.full_like(key, -1).masked_scatter_(both, at)
    at = torch.where(both, both.cumsum(0) - 1, room).clamp_(max=room)
    pairs = key.new_zeros(room + 1).scatter_(0, at, key)[:room]
    return pairs, torch.where(both, at, -1)
