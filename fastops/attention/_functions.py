"""BlockMask from and to functions of positions, and torch's FlexAttention."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _lists
from ._arguments import block_pair, integer, length_pair
from ._lists import FULL, NONE

if TYPE_CHECKING:
    from .block_mask import BlockMask

_TILE = 1 << 22  # elements worked out together
MaskFn = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Functions:
    """Class methods of BlockMask."""

    @classmethod
    def from_fn(
        cls,
        mask_fn: MaskFn,
        seq_lens: int | tuple[int, int],
        block_size: int | tuple[int, int] = 128,
        batch: int = 1,
        heads: int = 1,
        device: torch.device | str | None = None,
    ) -> BlockMask:
        """Of a function of positions, worked out in tiles of some million elements.

        Waits for the device; time follows Sq * Skv, memory the blocks kept.

        Args:
            mask_fn: ``mask_fn(b, h, q, kv)`` of integer tensors that broadcast, giving a bool one:
                what FlexAttention calls a mask_mod, where it indexes and compares only.
            seq_lens: (Sq, Skv), or one number for both.
            batch, heads: That the function tells apart; 1: one mask for all.

        Raises:
            TypeError: the function gives something else than bool.
        """
        name = "fastops.BlockMask.from_fn"
        size, lengths = block_pair(name, block_size), length_pair(name, seq_lens)
        integer(name, "batch", batch, 1)
        integer(name, "heads", heads, 1)
        device = torch.device("cpu" if device is None else device)
        grid_shape = tuple(-(-n // b) for n, b in zip(lengths, size, strict=True))
        if 0 in grid_shape:
            empty = torch.ones(batch, heads, *grid_shape, dtype=torch.bool, device=device)
            return cls.from_dense(empty, size, lengths)
        wide = max(size[1], min(lengths[1], _TILE // size[0]) // size[1] * size[1])
        at = [torch.arange(n, device=device) for n in (batch, heads, *lengths)]

        def tiles() -> Iterator[tuple[Tensor, Tensor, tuple[int, int, int, int]]]:
            for b, h in itertools.product(range(batch), range(heads)):
                b_, h_ = at[0][b, None, None, None], at[1][h, None, None]
                for i, q in enumerate(at[2].split(size[0])):
                    for j, kv in enumerate(at[3].split(wide)):
                        keep = _evaluate(name, mask_fn, b_, h_, q[:, None], kv)
                        keep = keep.expand(1, 1, q.numel(), kv.numel())
                        yield *_lists.cut(keep, size), (b, h, i, j * wide // size[1])

        blocks, bits = _lists.collect(tiles(), heads, grid_shape[0], size, device)
        return cls._of_blocks(blocks, bits, size, lengths, batch, heads)

    @classmethod
    def from_flex(cls, mask: Any) -> BlockMask:
        """Of a ``torch.nn.attention.flex_attention.BlockMask``. Its mask_mod is worked out in its
        partial blocks only; waits for the device.

        Raises:
            TypeError: something else.
            ValueError: block sizes other than 16, 32, 64, 128.
        """
        from torch.nn.attention.flex_attention import BlockMask as FlexMask

        name = "fastops.BlockMask.from_flex"
        if not isinstance(mask, FlexMask):
            raise TypeError(f"{name}: expected a flex_attention BlockMask, got {type(mask)}")
        size = block_pair(name, tuple(mask.BLOCK_SIZE))
        lengths = length_pair(name, tuple(mask.seq_lengths))
        partial = _listed(mask.kv_num_blocks, mask.kv_indices, size, lengths)
        grid = torch.where(partial, 0, NONE)
        if mask.full_kv_num_blocks is not None:
            whole = _listed(mask.full_kv_num_blocks, mask.full_kv_indices, size, lengths)
            grid = torch.where(whole, FULL, grid)
        b, h, i, j = partial.nonzero(as_tuple=True)
        packed, kinds = [], []
        rows = max(1, _TILE // (size[0] * size[1]))
        for at in torch.arange(b.numel(), device=b.device).split(rows):
            q = (i[at] * size[0])[:, None] + torch.arange(size[0], device=b.device)
            kv = (j[at] * size[1])[:, None] + torch.arange(size[1], device=b.device)
            q, kv = q[:, :, None], kv[:, None]
            inside = (q < lengths[0]) & (kv < lengths[1])
            q, kv = q.clamp(max=lengths[0] - 1), kv.clamp(max=lengths[1] - 1)
            b_, h_ = b[at][:, None, None], h[at][:, None, None]
            keep = _evaluate(name, mask.mask_mod, b_, h_, q, kv).expand(inside.shape)
            some, all_ = (keep & inside).flatten(1).any(1), (keep | ~inside).flatten(1).all(1)
            kinds.append(torch.where(all_, FULL, torch.where(some, 0, NONE)))
            packed.append(_lists.pack_bits((keep & inside).flatten(1)))
        words = size[0] * size[1] // _lists.WORD
        bits = torch.cat([*packed, torch.empty(0, words, dtype=torch.int32, device=b.device)])
        first, which = _lists.share(bits)
        if kinds:
            kind = torch.cat(kinds)
            grid[b, h, i, j] = torch.where(kind == 0, which, kind)
        return cls._from_grid(grid, bits[first], size, lengths)

    def to_flex(self) -> Any:
        """The same mask for ``torch.nn.attention.flex_attention``: its mask_mod looks up the bits.

        Memory is that of the whole grid of blocks, as FlexAttention has it."""
        from torch.nn.attention.flex_attention import BlockMask as FlexMask

        grid = self._grid()
        bits, (q_size, kv_size) = self.bits, self.block_size
        per_batch, per_head = self.batch > 1, self.heads > 1
        words = kv_size * q_size // _lists.WORD

        def mask_mod(b, h, q, kv):
            pattern = grid[b if per_batch else 0, h if per_head else 0, q // q_size, kv // kv_size]
            bit = q % q_size * kv_size + kv % kv_size
            if bits.shape[0] == 0:
                return pattern == FULL
            word = bits.view(-1)[pattern.clamp(min=0) * words + bit // _lists.WORD]
            return (pattern == FULL) | ((pattern >= 0) & ((word >> bit % _lists.WORD & 1) == 1))

        def listed(kept: Tensor) -> tuple[Tensor, Tensor]:
            order = kept.int().argsort(dim=-1, descending=True, stable=True).int()
            return kept.sum(-1, dtype=torch.int32), order

        return FlexMask.from_kv_blocks(
            *listed(grid >= 0), *listed(grid == FULL), BLOCK_SIZE=self.block_size,
            mask_mod=mask_mod, seq_lengths=self.seq_lens,
        )  # fmt: skip


def _evaluate(name: str, fn: MaskFn, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
    keep = fn(b, h, q, kv)
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
        got = keep.dtype if isinstance(keep, Tensor) else type(keep).__name__
        raise TypeError(f"{name}: expected the function to give a bool tensor, got {got}")
    return keep


def _listed(counts: Tensor, indices: Tensor, size, lengths) -> Tensor:
    """bool [batch, heads, q_blocks, kv_blocks] of FlexAttention's padded rows of indices."""
    rows, columns = (-(-n // b) for n, b in zip(lengths, size, strict=True))
    real = torch.arange(indices.shape[-1], device=indices.device) < counts[..., None]
    kept = torch.zeros((*indices.shape[:-1], columns + 1), dtype=torch.bool, device=indices.device)
    kept.scatter_(-1, torch.where(real, indices.long(), columns), True)
    return kept[:, :, :rows, :columns]
