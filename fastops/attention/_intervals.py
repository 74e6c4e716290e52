"""Masks whose rows keep an interval of keys: lists in time and memory of the blocks kept.

Geometry is worked out for rows of blocks on the CPU; the lists, whose lengths are then known, are
expanded on their device, which nothing waits for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _lists
from ._lists import Lists

_TILE = 1 << 22  # elements of patterns worked out together
_CPU = torch.device("cpu")


def interval_lists(
    low: Tensor, high: Tensor, sinks: int, size: tuple[int, int], seq_kv: int, device: torch.device
) -> tuple[Lists, Tensor]:
    """(lists, bits) where query i keeps the keys [low[i], high[i]) and the first `sinks` of
    [0, high[i]). low, high: int64 [Sq] on the CPU, that do not fall where rows keep anything."""
    block_q, block_kv = size
    high = high.clamp(0, seq_kv)
    low = torch.minimum(low.clamp(min=0), high)
    sink = torch.where(low < high, high.clamp(max=sinks), 0)
    # Past the last query: rows like it, which decide nothing.
    padding = -low.numel() % block_q
    low, high, sink = (
        torch.cat([t, t[-1:].expand(padding)]).view(-1, block_q) for t in (low, high, sink)
    )
    kept = low < high
    high = torch.where(kept, high, 0)
    edge = -(-seq_kv // block_kv)

    def down(key: Tensor) -> Tensor:
        """Blocks that end by a key; the last one ends with the sequence."""
        return torch.where(key == seq_kv, edge, key // block_kv)

    # Blocks [first, last) hold something of the intervals, and [inner, outer) nothing else.
    first = torch.where(kept, low, seq_kv).amin(1) // block_kv
    last = torch.maximum(-(-high.amax(1) // block_kv), first)
    inner = (-(-low.amax(1) // block_kv)).clamp(first, last)
    outer = down(high.amin(1)).clamp(inner, last)
    # The same of sinks, which may meet the intervals.
    sink_inner, sink_last = down(sink.amin(1)), -(-sink.amax(1) // block_kv)
    partial = [
        (torch.minimum(sink_inner, first), torch.minimum(sink_last, first)),
        (torch.maximum(first, sink_inner), inner),
        (torch.maximum(outer, sink_inner), last),
    ]
    whole = [(torch.zeros_like(first), sink_inner), (torch.maximum(inner, sink_inner), outer)]

    indices, counts = _expand([*partial, *whole], device)
    columns, partial_counts = _expand(partial, _CPU)
    rows = torch.arange(first.numel()).repeat_interleave(partial_counts)
    edges = [t.int()[rows] for t in ((low, high, sink) if sinks else (low, high))]
    bits, patterns = _patterns(edges, columns.int(), size)
    offsets, partial_offsets = (
        torch.nn.functional.pad(n.cumsum(0), (1, 0)).to(device) for n in (counts, partial_counts)
    )
    patterns = patterns.to(device, torch.int32)
    return Lists(offsets, indices.int(), partial_offsets, patterns), bits.to(device)


def _expand(segments: list[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows that hold ranges [begin, end) one after another: (all of them, the count of each)."""
    begins = torch.stack([begin for begin, _ in segments], 1)
    counts = (torch.stack([end for _, end in segments], 1) - begins).clamp_(min=0)
    each = counts.flatten()
    total = int(each.sum())
    shift = (begins.flatten() - (each.cumsum(0) - each)).to(device)
    columns = torch.repeat_interleave(shift, each.to(device), output_size=total)
    return columns.add_(torch.arange(total, device=device)), counts.sum(1)


def _patterns(edges: list[Tensor], columns: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(bits, which of them each partial block has); what is equal within a block is worked out
    once. edges: low, high and maybe sink, [blocks, block_q] each."""
    block_kv = size[1]
    key = columns[:, None] * block_kv
    cut = torch.cat([(t - key).clamp_(0, block_kv).short() for t in edges], 1)
    first, which = _lists.share(cut)
    column = torch.arange(block_kv, dtype=torch.int16)
    packed = []
    for part in cut[first].split(max(1, _TILE // (size[0] * block_kv))):
        begin, end, *sink = part.unflatten(1, (len(edges), -1))[..., None].unbind(1)
        keep = (column >= begin) & (column < end)
        if sink:
            keep |= column < sink[0]
        packed.append(_lists.pack_bits(keep.flatten(1)))
    words = size[0] * block_kv // _lists.WORD
    return torch.cat([*packed, torch.empty(0, words, dtype=torch.int32)]), which
