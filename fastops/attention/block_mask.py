"""BlockMask: which blocks of an attention matrix are kept, as data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _lists
from ._arguments import block_pair, check_lists, four_dims, length_pair
from ._combine import Combining
from ._forms import ClosedForms
from ._functions import Functions
from ._lists import FULL, NONE, Blocks, Lists

_TILE = 1 << 22  # elements of a mask looked at together


class BlockMask(ClosedForms, Functions, Combining):
    """The blocks of an attention matrix that are kept, as lists per row of blocks.

    A block of ``block_size[0]`` queries by ``block_size[1]`` keys is left out, kept whole, or kept
    partly, where a pattern of bits says which of its elements count. Cost and memory of
    :func:`fastops.block_sparse_attention` follow the blocks kept. Masks are data: a new one
    compiles nothing.

    Row ``r = (b * heads + h) * q_blocks + i`` of the lists has the blocks
    ``indices[offsets[r]:offsets[r + 1]]``: first its
    ``partial_offsets[r + 1] - partial_offsets[r]`` partial ones, ascending, then the whole ones,
    ascending. Partial block p of all follows ``bits[patterns[p]]``, where bit
    ``row * block_size[1] + column``, little endian in words of 32, keeps an element; equal blocks
    share a pattern. What a block has beyond the sequences does not count. A list may have room
    for more entries than its offsets name.

    Make one with the class methods; the constructor takes lists as they are and checks them where
    it can without waiting for a device. Kernels check every index anyway.

    Args:
        offsets, partial_offsets: int64 [batch * heads * q_blocks + 1].
        indices, patterns: int32 [any].
        bits: int32 [num_patterns, block_size[0] * block_size[1] / 32].
        block_size: queries and keys of a block, each of 16, 32, 64, 128 (or one number for both).
        seq_lens: (Sq, Skv), the lengths of queries and keys.
        batch, heads: of the lists; 1 is every sample's, or every head's.

    Raises:
        TypeError: something of another type or dtype.
        ValueError: sizes or devices that do not agree, or lists that leave their bounds.
    """

    def __init__(
        self,
        offsets: Tensor,
        indices: Tensor,
        partial_offsets: Tensor,
        patterns: Tensor,
        bits: Tensor,
        *,
        block_size: int | tuple[int, int],
        seq_lens: tuple[int, int],
        batch: int = 1,
        heads: int = 1,
    ):
        self._set(
            Lists(offsets, indices, partial_offsets, patterns), bits,
            block_pair("fastops.BlockMask", block_size),
            length_pair("fastops.BlockMask", seq_lens), batch, heads,
        )  # fmt: skip
        check_lists(self)

    def _set(self, lists, bits, block_size, seq_lens, batch, heads) -> None:
        self.offsets, self.indices, self.partial_offsets, self.patterns = lists
        self.bits = bits
        self.block_size: tuple[int, int] = block_size
        self.seq_lens: tuple[int, int] = seq_lens
        self.batch, self.heads = batch, heads
        self._transposed: Lists | None = None
        self._transposed_of: Any = None

    @classmethod
    def _make(cls, lists, bits, block_size, seq_lens, batch=1, heads=1) -> BlockMask:
        """Of lists known to be right."""
        mask = cls.__new__(cls)
        mask._set(lists, bits, block_size, seq_lens, batch, heads)
        return mask

    # ---- what it is -------------------------------------------------------------------------
    @property
    def q_blocks(self) -> int:
        """Rows of blocks of one head."""
        return -(-self.seq_lens[0] // self.block_size[0])

    @property
    def kv_blocks(self) -> int:
        """Columns of blocks."""
        return -(-self.seq_lens[1] // self.block_size[1])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, heads, Sq, Skv) of the mask of elements that this stands for."""
        return (self.batch, self.heads, *self.seq_lens)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def device(self) -> torch.device:
        return self.offsets.device

    @property
    def lists(self) -> Lists:
        """(offsets, indices, partial_offsets, patterns)."""
        return Lists(self.offsets, self.indices, self.partial_offsets, self.patterns)

    def transposed(self) -> Lists:
        """The same four lists by row of keys, over columns of queries; the bits stay as they are.

        Row ``(b * heads + h) * kv_blocks + j`` lists the blocks of queries that keep key block j.
        Made at the first call, by a sort on the device, without waiting for it, and kept until the
        lists are edited, which compiled code does not notice.
        """
        state = None if torch.compiler.is_compiling() else _state(self.lists)
        if self._transposed is not None and (state is None or _same(state, self._transposed_of)):
            return self._transposed
        matrices = self.batch * self.heads
        made = _lists.transpose(self.lists, matrices, self.q_blocks, self.kv_blocks, self.bits)
        if type(made.offsets) is Tensor:  # a trace's are of no use outside of it
            self._transposed, self._transposed_of = made, state
        return made

    def to(self, device: torch.device | str, non_blocking: bool = False) -> BlockMask:
        """The same mask on a device."""
        if torch.device(device) == self.device:
            return self
        lists = Lists(*(t.to(device, non_blocking=non_blocking) for t in self.lists))
        bits = self.bits.to(device, non_blocking=non_blocking)
        return self._make(lists, bits, self.block_size, self.seq_lens, self.batch, self.heads)

    def contiguous(self) -> BlockMask:
        """Itself: lists always are. For code that takes a mask for a tensor."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_transposed": None, "_transposed_of": None}

    # ---- as dense tensors -------------------------------------------------------------------
    def to_block_map(self) -> Tensor:
        """int32 [batch, heads, q_blocks, kv_blocks]: 0 left out, 1 partial, 2 whole."""
        kinds = self._grid()
        return torch.where(kinds == FULL, 2, (kinds >= 0).int()).int()

    def to_dense(self) -> Tensor:
        """bool [batch, heads, Sq, Skv]: the elements kept. For tests and small masks."""
        grid = self._grid()
        q, kv = self.block_size
        keep = (grid == FULL)[..., None, None].expand(*grid.shape, q, kv)
        if self.bits.shape[0]:
            patterns = _lists.unpack_bits(self.bits).view(-1, q, kv)
            keep = torch.where((grid >= 0)[..., None, None], patterns[grid.clamp(min=0)], keep)
        keep = keep.transpose(-3, -2).reshape(
            self.batch, self.heads, self.q_blocks * q, self.kv_blocks * kv
        )
        return keep[..., : self.seq_lens[0], : self.seq_lens[1]].contiguous()

    def _grid(self) -> Tensor:
        """int64 [batch, heads, q_blocks, kv_blocks]: a block's pattern, FULL, or -2: left out."""
        rows, columns = self.batch * self.heads * self.q_blocks, self.kv_blocks
        blocks = _lists.to_blocks(self.lists, rows, columns, self.bits.shape[0])
        grid = torch.full((rows * columns + 1,), NONE, device=self.device)
        to = torch.where(blocks.rows < rows, blocks.rows * columns + blocks.columns, rows * columns)
        grid.scatter_(0, to, blocks.patterns)
        return grid[:-1].view(self.batch, self.heads, self.q_blocks, columns)

    # ---- from dense tensors -----------------------------------------------------------------
    @classmethod
    def from_dense(
        cls,
        map: Tensor,
        block_size: int | tuple[int, int] = 128,
        seq_lens: tuple[int, int] | None = None,
    ) -> BlockMask:
        """Whole blocks where a map is True.

        Does not wait for the device: on a GPU the lists have room for the whole map.

        Args:
            map: bool [q_blocks, kv_blocks], with heads and batch before it or not.
            block_size: queries and keys of a block.
            seq_lens: (Sq, Skv); default: the blocks of the map are all whole.

        Raises:
            TypeError, ValueError: a map of another dtype or shape, sizes that do not agree.
        """
        name = "fastops.BlockMask.from_dense"
        map, _, _ = four_dims(name, "map", map)
        size = block_pair(name, block_size)
        grid = (map.shape[2], map.shape[3])
        if seq_lens is None:
            seq_lens = (grid[0] * size[0], grid[1] * size[1])
        seq_lens = length_pair(name, seq_lens)
        expected = tuple(-(-n // b) for n, b in zip(seq_lens, size, strict=True))
        if grid != expected:
            raise ValueError(
                f"{name}: expected map of {expected} blocks (lengths {seq_lens}, blocks of "
                f"{size}), got {grid}"
            )
        kinds = torch.where(map, FULL, NONE)
        bits = torch.empty(0, size[0] * size[1] // _lists.WORD, dtype=torch.int32)
        return cls._from_grid(kinds, bits.to(map.device), size, seq_lens, 0)

    @classmethod
    def from_element_mask(cls, mask: Tensor, block_size: int | tuple[int, int] = 128) -> BlockMask:
        """The blocks that hold a True of a mask of elements; whole where it is all True.

        Does not wait for the device: on a GPU every block has a pattern of its own, an eighth of
        the mask's memory; on a CPU equal ones are shared and only those of partial blocks kept.

        Args:
            mask: bool [Sq, Skv], with heads and batch before it or not.
            block_size: queries and keys of a block.

        Raises:
            TypeError, ValueError: a mask of another dtype or shape.
        """
        name = "fastops.BlockMask.from_element_mask"
        mask, batch, heads = four_dims(name, "mask", mask)
        size = block_pair(name, block_size)
        seq_lens = (mask.shape[2], mask.shape[3])
        rows = max(1, _TILE // max(1, batch * heads * size[0] * seq_lens[1]))
        parts = (_lists.cut(part, size) for part in mask.split(rows * size[0], 2))
        if _lists.may_look(mask):
            placed = ((*part, (0, 0, i * rows, 0)) for i, part in enumerate(parts))
            q_blocks = -(-seq_lens[0] // size[0])
            blocks, bits = _lists.collect(placed, heads, q_blocks, size, mask.device)
            return cls._of_blocks(blocks, bits, size, seq_lens, batch, heads)
        kinds, blocks = (torch.cat(t, 2) for t in zip(*parts, strict=True))
        own = torch.arange(kinds.numel(), device=mask.device).view(kinds.shape)
        bits = _lists.pack_bits(blocks.flatten(4).flatten(0, 3))
        grid = torch.where(kinds == 1, own, torch.where(kinds == 2, FULL, NONE))
        return cls._from_grid(grid, bits, size, seq_lens, kinds.numel())

    @classmethod
    def _from_grid(cls, grid, bits, block_size, seq_lens, num_partial=None) -> BlockMask:
        """Of the pattern of every block of [batch, heads, q_blocks, kv_blocks], FULL or NONE."""
        batch, heads, q_blocks, kv_blocks = grid.shape
        rows = batch * heads * q_blocks
        row = torch.arange(rows, device=grid.device)[:, None].expand(rows, kv_blocks)
        column = torch.arange(kv_blocks, device=grid.device).expand(rows, kv_blocks)
        blocks = Blocks(row.flatten(), column.flatten(), grid.flatten())
        return cls._of_blocks(blocks, bits, block_size, seq_lens, batch, heads, num_partial)

    @classmethod
    def _of_blocks(
        cls, blocks: Blocks, bits, block_size, seq_lens, batch, heads, num_partial=None
    ) -> BlockMask:
        """Of blocks in any order; those whose pattern is NONE are left out. num_partial: room for
        that many partial ones where they may not be counted."""
        q_blocks, kv_blocks = (-(-n // b) for n, b in zip(seq_lens, block_size, strict=True))
        rows = batch * heads * q_blocks
        kept = (blocks.patterns != NONE) & (blocks.rows < rows)
        if num_partial is None or _lists.may_look(kept):
            blocks = Blocks(*(t[kept] for t in blocks))
            if num_partial is None:
                num_partial = int((blocks.patterns >= 0).sum())
        else:
            blocks = blocks._replace(rows=torch.where(kept, blocks.rows, rows))
        lists = _lists.to_lists(blocks, rows, kv_blocks, num_partial)
        return cls._make(lists, bits, block_size, seq_lens, batch, heads)


def _state(lists: Lists) -> list[tuple[Tensor, int]]:
    """The lists and how often each was edited in place."""
    return [(t, 0 if t.is_inference() else t._version) for t in lists]


def _same(a: list[tuple[Tensor, int]], b: list[tuple[Tensor, int]] | None) -> bool:
    """Whether no list was replaced or edited. Lists are held, as ids are given again."""
    return b is not None and all(s is t and m == n for (s, m), (t, n) in zip(a, b, strict=True))
