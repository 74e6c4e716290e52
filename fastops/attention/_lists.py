"""Lists of blocks as tensors: made from coordinates, transposed, packed and shared bit patterns.

Nothing here waits for a device or has a shape that depends on values, except :func:`share`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

WORD = 32
FULL, NONE = -1, -2  # in place of a pattern: the block is kept whole, or left out


def may_look(t: Tensor) -> bool:
    """Whether values may decide shapes: not those on a GPU, which would have to be waited for."""
    return not t.is_cuda


class Lists(NamedTuple):
    """Rows of a compressed matrix of blocks, partial ones first in each row (csrc attention.h)."""

    offsets: Tensor
    indices: Tensor
    partial_offsets: Tensor
    patterns: Tensor


class Blocks(NamedTuple):
    """One entry per kept block; a row of `num_rows` or more marks an entry that does not count."""

    rows: Tensor
    columns: Tensor
    patterns: Tensor
    """int64: which bit pattern, FULL for a block kept whole."""


def to_lists(blocks: Blocks, num_rows: int, num_columns: int, num_partial: int) -> Lists:
    """Sorted lists of blocks in any order. `num_partial`: room for that many patterns."""
    rows, columns, patterns = blocks
    width = max(num_columns, 1)
    key = (rows * 2 + (patterns == FULL)) * width + columns
    key, order = key.clamp_(max=2 * num_rows * width).sort()
    starts = torch.arange(2 * num_rows + 1, device=key.device) * width
    bounds = torch.searchsorted(key, starts)
    counts = bounds[1::2] - bounds[:-1:2]
    partial_offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    patterns = patterns[order]
    partial = (patterns != FULL) & (key < 2 * num_rows * width)
    to = torch.where(partial, partial.cumsum(0) - 1, num_partial).clamp_(max=num_partial)
    kept = patterns.new_zeros(num_partial + 1).scatter_(0, to, patterns)[:num_partial]
    return Lists(
        bounds[::2].contiguous(), (key % width).int(), partial_offsets, kept.to(torch.int32)
    )


def to_blocks(lists: Lists, num_rows: int, num_columns: int, num_patterns: int) -> Blocks:
    """The entries of lists, in order; what is out of bounds does not count."""
    offsets, indices, partial_offsets, patterns = lists
    at = torch.arange(indices.numel(), device=indices.device)
    rows = torch.searchsorted(offsets, at, right=True) - 1
    columns = indices.long()
    real = (rows >= 0) & (rows < num_rows) & (columns >= 0) & (columns < num_columns)
    row = rows.clamp(0, max(num_rows - 1, 0))
    if patterns.numel() == 0:
        return Blocks(torch.where(real, rows, num_rows), columns, torch.full_like(rows, FULL))
    place = at - offsets[row]
    partial = place < partial_offsets[row + 1] - partial_offsets[row]
    which = patterns[(partial_offsets[row] + place).clamp(0, patterns.numel() - 1)].long()
    real &= ~partial | ((which >= 0) & (which < num_patterns))
    return Blocks(
        torch.where(real, rows, num_rows), columns, torch.where(partial & real, which, FULL)
    )


def transpose(lists: Lists, matrices: int, num_rows: int, num_columns: int, bits: Tensor) -> Lists:
    """Lists by column of `matrices` matrices stacked over each other; the patterns stay."""
    total = matrices * num_rows
    rows, columns, patterns = to_blocks(lists, total, num_columns, bits.shape[0])
    gone = rows >= total
    matrix, row = rows // max(num_rows, 1), rows % max(num_rows, 1)
    by_column = Blocks(
        torch.where(gone, matrices * num_columns, matrix * num_columns + columns), row, patterns
    )
    return to_lists(by_column, matrices * num_columns, num_rows, lists.patterns.numel())


# Eight bytes of 0 or 1, times this, have their bits in the top byte, the first one lowest.
_GATHER = 0x0102040810204080


def pack_bits(mask: Tensor) -> Tensor:
    """int32 [..., n / 32] of bool [..., n]: bit i of word w is element 32 w + i."""
    eights = mask.contiguous().view(torch.int64)
    return ((eights * _GATHER) >> 56).to(torch.uint8).contiguous().view(torch.int32)


def unpack_bits(words: Tensor) -> Tensor:
    """bool [..., 32 n] of int32 [..., n]."""
    bit = torch.arange(8, dtype=torch.uint8, device=words.device)
    octets = words.contiguous().view(torch.uint8)
    return (octets[..., None] >> bit & 1).bool().flatten(-2)


def first_of_each(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(first, which): keys[first] are the distinct keys, keys[first][which] are all of them."""
    distinct, which = keys.unique(return_inverse=True)
    first = torch.full_like(distinct, keys.numel(), dtype=torch.int64)
    at = torch.arange(keys.numel(), device=keys.device)
    return first.scatter_reduce_(0, which, at, "amin"), which


def share(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(first, which): rows[first] are the distinct rows, rows[first][which] are all of them.

    Waits for the device. By a 64-bit hash, and then by comparison: never wrong, and where hashes
    meet, not shared.
    """
    device = rows.device
    everything = torch.arange(rows.shape[0], device=device)
    if rows.shape[0] == 0:
        return everything, everything
    generator = torch.Generator().manual_seed(rows.shape[1])
    weights = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator) | 1
    weights = weights.to(device)
    chunk = max(1, (1 << 22) // rows.shape[1])
    hashes = torch.cat([(part.long() * weights).sum(1) for part in rows.split(chunk)])
    # A linear hash of small numbers has patterns of its own: mix it.
    hashes = (hashes ^ (hashes >> 29)) * -0x61C8864680B583EB
    first, which = first_of_each(hashes)
    same = all(
        torch.equal(part, rows[first[at]])
        for part, at in zip(rows.split(chunk), which.split(chunk), strict=True)
    )
    return (first, which) if same else (everything, everything)


def cut(mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A mask of elements [batch, heads, q, kv] in blocks: kinds [batch, heads, q_blocks,
    kv_blocks] (0 left out, 1 partial, 2 whole), and the blocks [..., block_q, block_kv]. Beyond
    the mask the blocks hold False, and a whole block may reach there."""
    q, kv = size
    padding = (0, -mask.shape[3] % kv, 0, -mask.shape[2] % q)
    padded = torch.nn.functional.pad(mask, padding)
    blocks = padded.unflatten(3, (-1, kv)).unflatten(2, (-1, q)).transpose(3, 4)
    kept = blocks.sum((-2, -1), dtype=torch.int32)
    lengths = [
        (n - torch.arange(0, n, b, device=mask.device)).clamp(max=b)
        for n, b in zip(mask.shape[2:], size, strict=True)
    ]
    whole = kept == lengths[0][:, None] * lengths[1]
    return torch.where(whole, 2, (kept > 0).int()), blocks


def collect(
    parts: Iterable[tuple[Tensor, Tensor, tuple[int, int, int, int]]],
    heads: int,
    q_blocks: int,
    size: tuple[int, int],
    device: torch.device,
) -> tuple[Blocks, Tensor]:
    """The blocks kept of what :func:`cut` gave, and the bits of partial ones, equal ones shared.
    Each part comes with where it begins: sample, head, row and column of blocks. Waits for the
    device."""
    kept = [Blocks(*(torch.empty(0, dtype=torch.int64, device=device) for _ in range(3)))]
    packed = [torch.empty(0, size[0] * size[1] // WORD, dtype=torch.int32, device=device)]
    count = 0
    for kinds, blocks, (b, h, row, column) in parts:
        bits = pack_bits(blocks[kinds == 1].flatten(1))
        first, which = share(bits)
        b_, h_, i, j = at = kinds.nonzero(as_tuple=True)
        patterns = torch.full_like(i, FULL)
        patterns[kinds[at] == 1] = which + count
        kept.append(Blocks(((b + b_) * heads + h + h_) * q_blocks + row + i, column + j, patterns))
        packed.append(bits[first])
        count += first.numel()
    blocks, bits = Blocks(*(torch.cat(t) for t in zip(*kept, strict=True))), torch.cat(packed)
    if len(packed) > 2:
        first, which = share(bits)
        bits, at = bits[first], blocks.patterns >= 0
        blocks.patterns[at] = which[blocks.patterns[at]]
    return blocks, bits


def spread(blocks: Blocks, num_rows: int, own: tuple[int, int], to: tuple[int, int]) -> Blocks:
    """Blocks of `own` samples and heads of `num_rows` rows each, 1 or `to` of them, for all."""
    if own == to:
        return blocks
    rows, columns, patterns = blocks
    b, h = (torch.arange(n // m, device=rows.device) for n, m in zip(to, own, strict=True))
    matrix, row = rows // max(num_rows, 1), rows % max(num_rows, 1)
    at = (matrix // own[1] + b[:, None, None]) * to[1] + matrix % own[1] + h[:, None]
    at = torch.where(matrix < own[0] * own[1], at * num_rows + row, to[0] * to[1] * num_rows)
    return Blocks(*(t.expand(at.shape).flatten() for t in (at, columns, patterns)))


def find(keys: Tensor, among: Tensor, values: Tensor) -> Tensor:
    """The values of `keys` among others, NONE where a key is not there."""
    if among.numel() == 0:
        return torch.full_like(keys, NONE)
    among, order = among.sort()
    at = torch.searchsorted(among, keys).clamp_(max=among.numel() - 1)
    return torch.where(among[at] == keys, values[order[at]], NONE)
