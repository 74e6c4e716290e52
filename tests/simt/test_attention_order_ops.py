"""The order in which attention's CUDA kernels take rows: longest list first, of equal ones the last
row first."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import fastops
from fastops import BlockMask
from fastops._lib import _native
from tests.simt import test_attention_ops
from tests.simt.emulator import counted, emulator, launched, launches
from tests.simt.simt_lib import library_path
from tests.simt.test_attention_ops import check

pytestmark = pytest.mark.usefixtures("order")
ORDER, SPLITS, JOIN = "attention order", "attention order and splits", "attention join"
LEAST_PIECE = 4


def clamped(offsets: np.ndarray, nnz: int) -> np.ndarray:
    """Lengths of all rows."""
    at = np.clip(offsets, 0, nnz)
    return np.maximum(at[1:] - at[:-1], 0)


def sections(offsets: np.ndarray, rows: int, nnz: int, members: int, section: int) -> np.ndarray:
    """What the kernel is to leave: of each section its rows, as list * rows + row."""
    lengths = clamped(offsets, nnz).reshape(-1, members, rows).sum(1)
    lengths = np.minimum(lengths, 2**31 - 1)
    found = []
    for first in range(0, len(lengths), section):
        here = lengths[first : first + section]
        ties = [(i, r) for r in reversed(range(rows)) for i in range(len(here))]
        found += [i * rows + r for i, r in sorted(ties, key=lambda t: -here[t])]
    return np.array(found, np.int32)


def sort(offsets: np.ndarray, rows: int, nnz: int, members: int = 1, section: int = 1) -> None:
    count = (len(offsets) - 1) // members
    workspace = np.full(2 * count + 1, -1, np.int32)
    _native.simt_call(
        str(library_path("libfastops_simt")), ORDER,
        {"offsets": offsets, "workspace": workspace}, {"order": workspace[:count]},
        rows=rows, nnz=nnz, members=members, section=section,
    )  # fmt: skip
    wanted = sections(offsets, rows, nnz, members, section)
    assert np.array_equal(workspace[:count], wanted)
    assert workspace[-1] == 0  # none has been taken


@pytest.mark.parametrize("rows", [1, 2, 33, 1000, 5000])
@pytest.mark.parametrize("longest", [0, 5, 300, 70000])  # of equal rows, ties, two passes, three
def test_sorted(rows: int, longest: int) -> None:
    lengths = np.random.default_rng(rows).integers(0, longest + 1, rows)
    lengths[np.random.default_rng(0).integers(0, rows, rows // 4)] = 0
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sort(offsets, rows, int(offsets[-1]))


@pytest.mark.parametrize("rows", [2, 33, 1000])
@pytest.mark.parametrize(("lists", "members", "section"), [(3, 1, 1), (5, 1, 2), (4, 3, 4)])
def test_several_lists(rows: int, lists: int, members: int, section: int) -> None:
    lengths = np.random.default_rng(rows).integers(0, 90, rows * lists * members)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sort(offsets, rows, int(offsets[-1]), members, section)


@pytest.mark.parametrize("nnz", [0, 1000, 2**40])
def test_edited_offsets(nnz: int) -> None:
    """Anything at all is sorted as kernels will clamp it."""
    offsets = np.random.default_rng(0).integers(-(2**50), 2**50, 701)
    offsets[::3] = np.arange(len(offsets[::3])) * 5
    sort(offsets, 350, nnz, section=2)


def pieces_of(
    lengths: np.ndarray, slots: int
) -> tuple[int, np.ndarray, dict[int, tuple[int, int]]]:
    """Of one section's rows in tiles [lists, rows]: the least length of a piece, items as
    piece * all rows + row, and of rows that are split the first slot and the number of pieces."""
    lists, rows = lengths.shape
    total, flat = int(lengths.sum()), lengths.reshape(-1)
    least = max(-(-total // (lists * rows)), -(-total // slots), LEAST_PIECE)
    items, split, slot = [], {}, 0
    for row in (i * rows + r for r in reversed(range(rows)) for i in range(lists)):
        count = flat[row] // least if flat[row] > 2 * least else 1
        if count > 1:
            split[row] = (slot, count)
            slot += count
        each = [len(part) for part in np.array_split(np.empty(flat[row]), count)]
        items += [(row, piece, each[piece]) for piece in range(count)]
    assert slot <= slots
    return least, sorted(items, key=lambda item: -item[2]), split


@pytest.mark.parametrize(("rows", "lists", "section"), [(2, 1, 1), (33, 3, 2), (600, 2, 1)])
@pytest.mark.parametrize("slots", [2, 17, 600])
@pytest.mark.parametrize("columns", [64, 128])
def test_split(rows: int, lists: int, section: int, slots: int, columns: int) -> None:
    """Pareto lengths: no more pieces than slots, none of less than the mean nor, as rows, more than
    twice as long as that; all of them sorted together."""
    rng, block = np.random.default_rng(rows), 32
    slots = min(slots, section * rows)
    lengths = (5 * rng.pareto(0.8, rows * lists)).clip(0, 3000).astype(np.int64)
    lengths[0] = 3000
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    listed, count = section * rows, -(-lists // section)
    sizes = [count * (listed + slots)] * 2 + [1, count * listed, count * (slots // 2 * 2), count]
    workspace = np.full(-(-sum(sizes) // 4) * 4, -7, np.int32)
    _native.simt_call(
        str(library_path("libfastops_simt")), "attention split",
        {"offsets": offsets, "workspace": workspace}, {"order": workspace[: sizes[0]]},
        rows=rows, nnz=int(offsets[-1]), section=section, slots=slots, columns=columns, block=block,
    )  # fmt: skip
    order, _, taken, first_slot, split, piece = np.split(workspace, np.cumsum(sizes))[:6]
    assert taken == 0
    order, first_slot = order.reshape(count, -1), first_slot.reshape(count, -1)
    split = split.reshape(count, -1, 2)
    tiles = -(-lengths * block // columns).reshape(lists, rows)
    for i in range(count):
        here = tiles[i * section : (i + 1) * section]
        least, items, splits = pieces_of(here, slots)
        codes = [j * listed + row for row, j, _ in items]
        assert piece[i] == least
        assert order[i].tolist() == codes + [-1] * (len(order[i]) - len(codes))
        slot = [splits[row][0] if row in splits else -1 for row in range(here.size)]
        assert first_slot[i, : here.size].tolist() == slot
        assert [tuple(s) for s in split[i] if s[0] >= 0] == [(r, n) for r, (_, n) in splits.items()]
        if slots == listed and rows > 2 and i == 0:
            assert splits


@pytest.fixture
def small_device():
    """One SM, and an L2 that holds keys and values of few heads."""
    emulator().simt_set_device(1, 9, 0)
    yield
    emulator().simt_set_device(4, 9, 0)


@pytest.mark.usefixtures("small_device")
@pytest.mark.parametrize("own", [(1, 1), (1, 4), (3, 1), (3, 4)])
@pytest.mark.parametrize(
    ("dtype", "hopper", "channels"),
    [
        (torch.float32, "0", 64), (torch.float16, "0", 64), (torch.bfloat16, "1", 64),
        (torch.float16, "1", 200),
    ],
    ids=["plain", "mma", "hopper", "hopper wide"],
)  # fmt: skip
def test_every_tile_has_a_block(dtype, hopper, channels, own, monkeypatch) -> None:
    """Sections of some heads, of lists and of samples, the last of them smaller; rows cut into
    tiles, of which the last row has not all."""
    monkeypatch.setenv("FASTOPS_SM90", hopper)
    for lengths, block in (((200, 230), (64, 64)), ((150, 390), (128, 32))):
        if dtype == torch.float32:  # as many tiles, which are smaller
            lengths, block = (lengths[0] // 2, lengths[1] // 4), (64, block[1])
        options = {"own": own, "batch": 3, "backward": channels == 64}
        check(dtype, channels, 64, lengths, (4, 2), block, **options)


def test_launched_where_it_may_matter() -> None:
    """Not where the device has room for all tiles at once, nor where everything is kept."""
    q = torch.randn(1, 2, 160, 64).half().requires_grad_()
    for queries, mask, expected in (
        (32, BlockMask.causal(32, 16), 0),
        (160, None, 0),
        (160, BlockMask.causal(160, 16), 3),  # the forward, and both parts of the backward
        (160, BlockMask.causal(160, 128), 0),
    ):
        x = q[:, :, :queries]
        launches()
        fastops.block_sparse_attention(x, x, x, mask).sum().backward()
        assert launches().count(ORDER) == expected


def heavy(shape: tuple[int, ...], block: tuple[int, int]) -> torch.Tensor:
    """A mask of elements with one row of blocks that keeps most, others little or nothing."""
    generator = torch.Generator().manual_seed(shape[-1])
    *outer, q, kv = shape
    rows, columns = -(-q // block[0]), -(-kv // block[1])
    kind = torch.rand(*outer, rows, columns, generator=generator) * 20
    kind[..., 1, :] = torch.rand(*outer, columns, generator=generator)
    kind[..., 3, :] = 1
    kind = kind.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)[..., :q, :kv]
    elements = torch.rand(shape, generator=generator)
    mask = (kind < 0.6) | ((kind < 0.9) & (elements < 0.5))
    mask[..., block[0] + 5, :] = False  # a row that keeps nothing in a row of blocks that is split
    return mask


@pytest.mark.parametrize(
    ("heads", "block", "own", "channels", "sinks"),
    [
        ((1, 1), (128, 64), (1, 1), (64, 64), False), ((4, 1), (32, 16), (2, 1), (40, 64), True),
        ((2, 2), (64, 128), (2, 2), (64, 24), False), ((2, 1), (64, 64), (1, 1), (128, 96), True),
        ((2, 2), (64, 32), (1, 2), (128, 128), True), ((1, 1), (128, 64), (1, 1), (256, 256), True),
        ((2, 2), (64, 128), (1, 2), (160, 192), True), ((2, 1), (64, 16), (1, 1), (96, 256), False),
    ],
)  # fmt: skip
def test_split_rows(heads, block, own, channels, sinks, monkeypatch) -> None:
    """Of one head and of packed ones, of lists that heads share and of their own, with sinks that
    count once and rows that keep nothing."""
    monkeypatch.setenv("FASTOPS_SM90", "1")
    monkeypatch.setattr(test_attention_ops, "passes", launched)
    lengths = (block[0] * 4 + 9, 1500)
    elements = heavy((*own, *lengths), block)
    options = {"elements": elements, "sinks": sinks, "bias": sinks, "backward": False}
    names = check(torch.bfloat16, *channels, lengths, heads, block, **options)
    assert names == {SPLITS, "attention forward hopper", JOIN}


def test_split_rows_run_as_pieces(monkeypatch) -> None:
    """And give the same bits whoever runs first; edited lists lead nowhere."""
    monkeypatch.setenv("FASTOPS_SM90", "1")
    lengths = (6 * 64, 1500)
    q, k = (torch.randn(1, 2, n, 64).half() for n in lengths)
    mask = BlockMask.from_element_mask(heavy(lengths, (64, 64)), 64)
    launches()
    first = fastops.block_sparse_attention(q, k, k, mask, return_lse=True)
    assert launches() == [SPLITS, "attention forward hopper", JOIN]
    emulator().simt_configure(2, 1, 99)
    again = fastops.block_sparse_attention(q, k, k, mask, return_lse=True)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    generator = torch.Generator().manual_seed(0)
    offsets = mask.lists[0]
    offsets[1:] = torch.randint(-90, 900, offsets[1:].shape, generator=generator)
    fastops.block_sparse_attention(q, k, k, mask)


@pytest.fixture
def processors():
    """Sets how many SMs there are."""
    yield lambda count: emulator().simt_set_device(count, 9, 0)
    emulator().simt_set_device(4, 9, 0)


# Samples, heads of q and kv, lengths, channels of keys and values. Rows of one head and of packed
# ones, for two warpgroups and for one; five listed tiles, so that rows swap stages, and six.
EVERYTHING = [
    (1, (1, 1), (301, 601), (64, 64)), (2, (4, 2), (50, 645), (40, 64)),
    (2, (6, 3), (20, 580), (64, 56)), (1, (1, 1), (260, 602), (128, 104)),
    (2, (3, 1), (49, 301), (128, 128)), (1, (1, 1), (261, 310), (256, 256)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("batch", "heads", "lengths", "channels"), EVERYTHING)
def test_blocks_take_turns(batch, dtype, heads, lengths, channels, processors, monkeypatch) -> None:
    """Where everything is kept, more tiles than blocks give the same bits as one for each."""
    monkeypatch.setenv("FASTOPS_SM90", "1")
    plan = _native.attention_cuda_plan(
        dense=True, seq_q=lengths[0], group=heads[0] // heads[1],
        head_dim=channels[0], value_dim=channels[1],
    )  # fmt: skip
    tiles = batch * heads[0] // plan["pack"] * -(-lengths[0] // plan["rows"])
    assert lengths[1] > 4 * plan["columns"]
    assert tiles > 2 * plan["blocks"]
    processors(1)
    options = {"own": None, "sinks": channels[0] == 128, "batch": batch, "backward": False}
    names = check(dtype, *channels, lengths, heads, (128, 128), **options)
    assert names == {"attention forward hopper"}
    q = torch.randn(batch, heads[0], lengths[0], channels[0]).to(dtype)
    k, v = (torch.randn(batch, heads[1], lengths[1], c).to(dtype) for c in channels)
    turns = fastops.block_sparse_attention(q, k, v, return_lse=True)
    # As many blocks as tiles, or fewer tiles than the device has room for.
    processors(tiles // plan["blocks"] * (1 if dtype == torch.float16 else 2))
    one_each = fastops.block_sparse_attention(q, k, v, return_lse=True)
    assert all(a.equal(b) for a, b in zip(turns, one_each, strict=True))


def test_a_grid_is_no_larger_than_what_runs_at_once(processors, monkeypatch) -> None:
    """But where rows that nothing sorts differ in length: the device hands them out."""
    monkeypatch.setenv("FASTOPS_SM90", "1")
    kept = torch.rand(1, 3, 300, 16) < 0.5
    for length, elements, persistent in (
        (300, None, True), (300, kept, True),
        (100, kept[0, 0, :100], True), (100, kept[:, :, :100], False),
    ):  # fmt: skip
        q, k = torch.randn(1, 3, length, 64).half(), torch.randn(1, 3, 16, 64).half()
        mask = None if elements is None else BlockMask.from_element_mask(elements, 128)
        tiles = 3 * -(-length // 128)
        for count in (2, tiles, 20):
            processors(count)
            found = counted(partial(fastops.block_sparse_attention, q, k, k, mask))
            blocks = [f["blocks"] for f in found if f["kernel"] == "attention forward hopper"]
            assert blocks == [min(tiles, count) if persistent else tiles]
