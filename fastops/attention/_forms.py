"""Closed forms of BlockMask: masks in time and memory of the blocks they keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _checks
from . import _lists
from ._arguments import block_pair, integer, length_pair
from ._intervals import interval_lists
from ._lists import FULL, NONE, Blocks

if TYPE_CHECKING:
    from .block_mask import BlockMask

Sizes = int | tuple[int, int]
Device = torch.device | str | None
_CATEGORIES = ("dense", "sink", "document", "hybrid")


class ClosedForms:
    """Class methods of BlockMask.

    ``seq_lens`` is (Sq, Skv), or one number for both. Where they differ, query i stands at position
    ``i + Skv - Sq`` among the keys: queries are the last ones, as they are with a cache.
    """

    @classmethod
    def _of_intervals(cls, name, low, high, sinks, block_size, seq_lens, device) -> BlockMask:
        size = block_pair(name, block_size)
        device = torch.device("cpu" if device is None else device)
        if seq_lens[0] == 0:
            return cls.from_dense(
                torch.ones(0, -(-seq_lens[1] // size[1]), dtype=torch.bool, device=device),
                size, seq_lens,
            )  # fmt: skip
        lists, bits = interval_lists(low, high, sinks, size, seq_lens[1], device)
        return cls._make(lists, bits, size, seq_lens)

    @classmethod
    def causal(
        cls,
        seq_lens: Sizes,
        block_size: Sizes = 128,
        device: Device = None,
        offset: int | None = None,
    ) -> BlockMask:
        """Keys up to a query's own position.

        Args:
            offset: The first query's position among the keys; default: queries are the last ones.
                Less than that where keys beyond them are not there yet (a static cache).
        """
        name = "fastops.BlockMask.causal"
        lengths = length_pair(name, seq_lens)
        position = _positions(lengths)
        if offset is not None:
            first = _checks.integer(name, "offset to be an int", offset)
            position += first - (lengths[1] - lengths[0])
        return cls._of_intervals(
            name, torch.zeros_like(position), position + 1, 0, block_size, lengths, device
        )

    @classmethod
    def sliding_window(
        cls,
        seq_lens: Sizes,
        left: int,
        right: int = 0,
        sinks: int = 0,
        block_size: Sizes = 128,
        device: Device = None,
    ) -> BlockMask:
        """From `left` keys before a query's position to `right` after it, and the first `sinks`
        keys where they are not after that window (Xiao et al., StreamingLLM, 2309.17453, 3.2).

        Raises:
            ValueError: a negative number.
        """
        name = "fastops.BlockMask.sliding_window"
        lengths = length_pair(name, seq_lens)
        for arg, value in (("left", left), ("right", right), ("sinks", sinks)):
            integer(name, arg, value, 0)
        position = _positions(lengths)
        low, high = position - left, position + right + 1
        low = torch.where(high <= sinks, 0, low)
        return cls._of_intervals(name, low, high, sinks, block_size, lengths, device)

    @classmethod
    def prefix_lm(
        cls, seq_lens: Sizes, prefix: int, block_size: Sizes = 128, device: Device = None
    ) -> BlockMask:
        """Causal, and the first `prefix` keys for everyone (Raffel et al., T5, section 3.2.1)."""
        name = "fastops.BlockMask.prefix_lm"
        lengths = length_pair(name, seq_lens)
        integer(name, "prefix", prefix, 0)
        high = (_positions(lengths) + 1).clamp(min=prefix)
        low = torch.zeros_like(high)
        return cls._of_intervals(name, low, high, 0, block_size, lengths, device)

    @classmethod
    def documents(
        cls,
        cu_seqlens: Tensor | Sequence[int],
        causal: bool = False,
        block_size: Sizes = 128,
        total: int | None = None,
        device: Device = None,
    ) -> BlockMask:
        """Packed sequences that see only themselves.

        Args:
            cu_seqlens: integers [documents + 1], rising from 0: document d has the tokens
                ``[cu_seqlens[d], cu_seqlens[d + 1])``. Reading a tensor on a GPU waits for it.
            causal: Only keys up to the query's position.
            total: Tokens; those past the last document keep nothing. Default: ``cu_seqlens[-1]``.
            device: Of the mask; default: cu_seqlens'.

        Raises:
            TypeError, ValueError: no integers, not rising from 0, or ending past `total`.
        """
        name = "fastops.BlockMask.documents"
        edges = torch.as_tensor(cu_seqlens)
        device = edges.device if device is None else device
        if edges.is_floating_point() or edges.dtype == torch.bool:
            raise TypeError(f"{name}: expected cu_seqlens of integers, got {edges.dtype}")
        if edges.ndim != 1 or edges.numel() == 0:
            raise ValueError(
                f"{name}: expected cu_seqlens of shape [documents + 1], got {tuple(edges.shape)}"
            )
        edges = edges.cpu().long()
        if int(edges[0]) != 0 or bool((edges.diff() < 0).any()):
            raise ValueError(f"{name}: expected cu_seqlens to rise from 0")
        end = int(edges[-1])
        total = end if total is None else integer(name, "total", total, end)
        rest = torch.tensor([total - end])
        counts = torch.cat([edges.diff(), rest])
        starts = torch.cat([edges[:-1], torch.tensor([total])])
        ends = torch.cat([edges[1:], torch.tensor([total])])
        low, high = (t.repeat_interleave(counts) for t in (starts, ends))
        if causal:
            high = torch.minimum(high, torch.arange(total) + 1)
        return cls._of_intervals(name, low, high, 0, block_size, (total, total), device)

    @classmethod
    def bigbird(
        cls,
        seq_len: int,
        block_size: int = 64,
        window_blocks: int = 3,
        global_blocks: int = 2,
        random_blocks: int = 3,
        heads: int = 1,
        seed: int = 0,
        device: Device = None,
    ) -> BlockMask:
        """Blocks around a query's own, global ones, which see and are seen by all, and random ones
        (Zaheer et al., BigBird, 2007.14062, section 2). Other random ones for each of `heads`.
        """
        name = "fastops.BlockMask.bigbird"
        size = block_pair(name, block_size)
        lengths = length_pair(name, seq_len)
        integer(name, "heads", heads, 1)
        for arg, value in (
            ("window_blocks", window_blocks),
            ("global_blocks", global_blocks),
            ("random_blocks", random_blocks),
        ):
            integer(name, arg, value, 0)
        if size[0] != size[1]:
            raise ValueError(f"{name}: expected square blocks, got {size}")
        n = -(-lengths[0] // size[0])
        row = torch.arange(heads * n)[:, None]
        generator = torch.Generator().manual_seed(seed)
        columns = torch.cat(
            [
                row % max(n, 1) + torch.arange(window_blocks) - window_blocks // 2,
                torch.arange(min(global_blocks, n)).expand(heads * n, -1),
                torch.randint(max(n, 1), (heads * n, random_blocks), generator=generator),
            ],
            1,
        )
        seeing = torch.arange(min(global_blocks, n))
        seeing = (torch.arange(heads)[:, None] * n + seeing).flatten()
        key = torch.cat([
            (row * n + columns)[(columns >= 0) & (columns < n)],
            (seeing[:, None] * n + torch.arange(n)).flatten(),
        ]).unique()  # fmt: skip
        return cls._of_keys(key, size, lengths, heads, device)

    @classmethod
    def _of_keys(cls, key, size, seq_lens, heads, device) -> BlockMask:
        """Whole blocks, by row * columns + column."""
        columns = -(-seq_lens[1] // size[1])
        rows = heads * -(-seq_lens[0] // size[0])
        device = torch.device("cpu" if device is None else device)
        key = key.to(device)
        blocks = Blocks(key // max(columns, 1), key % max(columns, 1), torch.full_like(key, FULL))
        lists = _lists.to_lists(blocks, rows, columns, 0)
        bits = torch.empty(0, size[0] * size[1] // _lists.WORD, dtype=torch.int32, device=device)
        return cls._make(lists, bits, size, seq_lens, 1, heads)

    @classmethod
    def tile_2d(
        cls,
        size: tuple[int, int],
        tile: tuple[int, int],
        window: tuple[int, int],
        block_size: int | None = None,
        device: Device = None,
    ) -> BlockMask:
        """Neighbourhoods of an image, tile by tile (Zhang et al., Sliding Tile Attention,
        2502.04507, section 3): a query sees the `window` of tiles around its own, moved inside at
        the borders. Tokens are in the order of :func:`fastops.attention.tile_order`.

        Args:
            size: Height and width in tokens, multiples of the tile's.
            tile: Height and width of a tile; its tokens are a multiple of the block's.
            window: Height and width in tiles, odd (or all there are).
            block_size: Default: the largest that divides a tile.
        """
        return cls._tiles("fastops.BlockMask.tile_2d", 2, size, tile, window, block_size, device)

    @classmethod
    def tile_3d(
        cls,
        size: tuple[int, int, int],
        tile: tuple[int, int, int],
        window: tuple[int, int, int],
        block_size: int | None = None,
        device: Device = None,
    ) -> BlockMask:
        """:meth:`tile_2d` of a video: frames, height, width."""
        return cls._tiles("fastops.BlockMask.tile_3d", 3, size, tile, window, block_size, device)

    @classmethod
    def _tiles(cls, name, rank, size, tile, window, block_size, device) -> BlockMask:
        counts = tile_counts(name, rank, size, tile)
        _numbers(name, "window", rank, window)
        tokens = math.prod(tile)
        if block_size is None:
            block_size = next((b for b in (128, 64, 32, 16) if tokens % b == 0), 16)
        block = block_pair(name, block_size)
        if tokens % block[0] or tokens % block[1]:
            raise ValueError(
                f"{name}: expected a tile of a multiple of {max(block)} tokens, got {tokens}"
            )
        near = torch.ones(1, 1, dtype=torch.bool)
        for n, w in zip(counts, window, strict=True):
            if w % 2 == 0 and w < n:
                raise ValueError(f"{name}: expected an odd window, got {tuple(window)}")
            at = torch.arange(n)
            centre = at.clamp(min(w // 2, n - 1), max(n - 1 - w // 2, 0)) if w < n else at * 0
            reach = w // 2 if w < n else n
            close = (at - centre[:, None]).abs() <= reach
            near = torch.kron(near.byte(), close.byte()).bool()
        # Of tiles to blocks.
        q, kv = (tokens // b for b in block)
        a, b = near.nonzero(as_tuple=True)
        row = (a[:, None, None] * q + torch.arange(q)[:, None]) * (near.shape[1] * kv)
        key = row + b[:, None, None] * kv + torch.arange(kv)
        length = math.prod(size)
        return cls._of_keys(key.flatten(), block, (length, length), 1, device)

    @classmethod
    def vlm(
        cls,
        image_ids: Tensor | Sequence[int],
        categories: Sequence[str],
        sinks: int = 16,
        block_size: Sizes = 128,
        device: Device = None,
    ) -> BlockMask:
        """A category per head of a causal model of text and images, after BlindSight.

        Query q sees key k <= q where either is text, and, with

        - ``"sink"``: where k is one of the first `sinks` tokens of its image;
        - ``"document"``: where both are of one image;
        - ``"hybrid"``: either of the two;
        - ``"dense"``: always.

        Args:
            image_ids: integers [S]: the image of a token, negative for text. The tokens of an image
                are neighbours. Reading a tensor on a GPU waits for it.
            categories: One of these words for each head.

        Raises:
            TypeError, ValueError: other dtypes, shapes or words.
        """
        name = "fastops.BlockMask.vlm"
        image_ids = torch.as_tensor(image_ids)
        device = image_ids.device if device is None else device
        if image_ids.is_floating_point() or image_ids.dtype == torch.bool:
            raise TypeError(f"{name}: expected image_ids of integers, got {image_ids.dtype}")
        if image_ids.ndim != 1:
            raise ValueError(
                f"{name}: expected image_ids of shape [S], got {tuple(image_ids.shape)}"
            )
        integer(name, "sinks", sinks, 0)
        unknown = [c for c in categories if c not in _CATEGORIES]
        if unknown or not categories:
            raise ValueError(f"{name}: expected categories of {_CATEGORIES}, got {unknown}")
        ids = image_ids.cpu().long()
        size, length = block_pair(name, block_size), ids.numel()
        begins = torch.cat([ids[:1] == ids[:1], ids.diff() != 0]).nonzero().flatten()
        run = torch.searchsorted(begins, torch.arange(length), right=True) - 1
        place = torch.arange(length) - begins[run]
        grids, bits, count = {}, [], 0
        for category in dict.fromkeys(categories):
            grid, patterns = _category_grid(category, ids, place < sinks, size)
            grids[category] = torch.where(grid >= 0, grid + count, grid)
            bits.append(patterns)
            count += patterns.shape[0]
        grid = torch.stack([grids[c] for c in categories])[None]
        mask = cls._from_grid(grid, torch.cat(bits), size, (length, length))
        return mask.to(device)


def _category_grid(
    category: str, ids: Tensor, leading: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(pattern of each block, bits): blocks that tokens alike decide are not looked into."""
    length = ids.numel()
    text = ids < 0
    seen = text | leading if category in ("sink", "hybrid") else text
    if category == "dense":
        seen = torch.ones_like(text)
    same = category in ("document", "hybrid")

    def blocks(t: Tensor, size: int) -> Tensor:
        """Past the end: as the last token."""
        return torch.cat([t, t[-1:].expand(-t.numel() % size)]).view(-1, size)

    q_text, q_ids = blocks(text, size[0]), blocks(ids, size[0])
    k_seen, k_ids = blocks(seen, size[1]), blocks(ids, size[1])
    q_first, k_first = (torch.arange(0, length, b) for b in size)
    q_last, k_last = (
        (f + b - 1).clamp(max=length - 1) for f, b in zip((q_first, k_first), size, strict=True)
    )
    q_low, q_high, k_low, k_high = (
        t[:, None] if i < 2 else t
        for i, t in enumerate((q_ids.amin(1), q_ids.amax(1), k_ids.amin(1), k_ids.amax(1)))
    )
    one_image = (q_low == q_high) & (k_low == k_high) & (q_low == k_low) & (q_low >= 0)
    q_least, k_least = (t.where(t >= 0, 2**62).amin(1) for t in (q_ids, k_ids))  # of images
    meet = (q_least[:, None] <= k_high) & (k_least <= q_high)
    whole = (k_last <= q_first[:, None]) & (
        q_text.all(1)[:, None] | k_seen.all(1) | (one_image if same else False)
    )
    some = (k_first <= q_last[:, None]) & (
        q_text.any(1)[:, None] | k_seen.any(1) | (meet if same else False)
    )
    grid = torch.where(whole, FULL, NONE)
    rows, columns = (some & ~whole).nonzero(as_tuple=True)
    # Off the diagonal and the end, with no image on both sides, text and sinks decide alone.
    near = (k_last > q_first[:, None]) | (k_first + size[1] > length) | (meet if same else False)
    first_q, like_q = _lists.share(q_text.short())
    first_k, like_k = _lists.share(k_seen.short())
    key = like_q[rows] * first_k.numel() + like_k[columns]
    alone = torch.arange(key.numel()) + first_q.numel() * first_k.numel()
    every_row, every_column = rows, columns
    first, like = _lists.first_of_each(torch.where(near[rows, columns], alone, key))
    rows, columns = rows[first], columns[first]
    packed, full = [], [torch.empty(0, dtype=torch.bool)]
    for r, c in zip(rows.split(256), columns.split(256), strict=True):
        q = (q_first[r][:, None] + torch.arange(size[0])).clamp(max=length - 1)[:, :, None]
        k = (k_first[c][:, None] + torch.arange(size[1]))[:, None]
        inside, k = k < length, k.clamp(max=length - 1)
        keep = text[q] | seen[k]
        if same:
            keep |= ids[q] == ids[k]
        keep &= k <= q
        full.append((keep | ~inside).flatten(1).all(1))
        packed.append(_lists.pack_bits((keep & inside).flatten(1)))
    words = size[0] * size[1] // _lists.WORD
    bits = torch.cat([*packed, torch.empty(0, words, dtype=torch.int32)])
    first, which = _lists.share(bits)
    kind = torch.where((bits == 0).all(1), NONE, which)
    kind = torch.where(torch.cat(full), FULL, kind)
    grid[every_row, every_column] = kind[like]
    return grid, bits[first]


def _positions(lengths: tuple[int, int]) -> Tensor:
    return torch.arange(lengths[0]) + (lengths[1] - lengths[0])


def tile_counts(name: str, rank: int, size: Any, tile: Any) -> list[int]:
    """Tiles along each dim."""
    _numbers(name, "size", rank, size)
    _numbers(name, "tile", rank, tile)
    if any(n % t for n, t in zip(size, tile, strict=True)):
        raise ValueError(f"{name}: expected size {tuple(size)} in multiples of tile {tuple(tile)}")
    return [n // t for n, t in zip(size, tile, strict=True)]


def _numbers(name: str, arg: str, rank: int, value: Any) -> None:
    if not isinstance(value, tuple | list):
        raise TypeError(f"{name}: expected {arg} of {rank} numbers, got {type(value).__name__}")
    if len(value) != rank:
        raise ValueError(f"{name}: expected {arg} of {rank} numbers, got {value}")
    for n in value:
        integer(name, arg, n, 1)


def tile_order(size: Sequence[int], tile: Sequence[int], device: Device = None) -> Tensor:
    """int64 [prod(size)]: the tokens of an image or video, row by row, in the order of tiles.

    ``x[:, order]`` is what :meth:`BlockMask.tile_2d` and ``tile_3d`` are about;
    ``order.argsort()`` undoes it.
    """
    counts = tile_counts("fastops.attention.tile_order", len(size), size, tile)
    tokens = torch.arange(math.prod(size), device=device)
    grid = tokens.view([n for pair in zip(counts, tile, strict=True) for n in pair])
    rank = len(size)
    return grid.permute(*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)).flatten()
