"""BlockMask together with another, and drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _lists
from ._arguments import integer
from ._lists import FULL, NONE

if TYPE_CHECKING:
    from .block_mask import BlockMask

_DRAWN = (24, 64)  # rows and columns of str(), at most
_SHADES = " ░▒▓█"


class Combining:
    """Methods of BlockMask. All wait for the device."""

    def __and__(self, other: Any) -> BlockMask:
        """What both keep."""
        return _combined(self, other, NONE, FULL, torch.bitwise_and)

    def __or__(self, other: Any) -> BlockMask:
        """What either keeps."""
        return _combined(self, other, FULL, NONE, torch.bitwise_or)

    @property
    def density(self) -> float:
        """Listed blocks, partial ones counted whole, in all there are; 0 where there are none."""
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
    left, right = torch.broadcast_tensors(a._grid(), b._grid())
    ours, theirs = a.bits.shape[0], max(b.bits.shape[0], 1)
    moved = torch.where(right >= 0, right + ours, right)
    grid = torch.where(left == yields, moved, left)
    grid = torch.where((left == wins) | (right == wins), wins, grid)
    both = (left >= 0) & (right >= 0)
    pairs, which = (left[both] * theirs + right[both]).unique(return_inverse=True)
    joined = join(a.bits[pairs // theirs], b.bits[pairs % theirs])
    kind = torch.arange(pairs.numel(), device=pairs.device) + ours + b.bits.shape[0]
    kind = torch.where((joined == 0).all(1), NONE, kind)
    kind = torch.where((joined == -1).all(1), FULL, kind)
    grid = grid.clone()
    grid[both] = kind[which]
    bits = torch.cat([a.bits, b.bits, joined])
    partial = grid >= 0
    used, which = grid[partial].unique(return_inverse=True)
    first, shared = _lists.share(bits[used])
    grid[partial] = shared[which]
    return a._from_grid(grid, bits[used][first], a.block_size, a.seq_lens, int(partial.sum()))
