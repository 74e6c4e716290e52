"""The CUDA heuristics as pure functions: no GPU, no CUDA build."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

_native = pytest.importorskip("fastops._lib._native", reason="the pybind11 module is not built")
plan = _native.attention_cuda_plan
order = _native.attention_cuda_order
BLOCKS = (16, 32, 64, 128)


def test_hopper_waits_to_be_turned_on() -> None:
    assert plan(hopper=True)["kernel"] == "hopper"
    assert plan(hopper=False)["kernel"] == "mma"
    assert plan(aligned=False)["kernel"] == "plain"
    assert plan(floats=True)["kernel"] == "plain"


@pytest.mark.parametrize(
    ("block", "group", "cut"),  # warpgroups of 64 rows, heads of a tile
    [
        (128, 1, (2, 1)), (128, 8, (2, 1)), (64, 1, (1, 1)), (64, 3, (1, 1)), (64, 4, (2, 2)),
        (32, 2, (1, 2)), (32, 8, (2, 4)), (16, 4, (1, 4)), (16, 12, (1, 4)), (16, 8, (2, 8)),
        (32, 1, None), (16, 2, None), (32, 3, None),
    ],
)  # fmt: skip
def test_heads_that_share_a_list_fill_a_tile(block, group, cut) -> None:
    p = plan(block_q=block, group=group)
    assert p["kernel"] == ("hopper" if cut else "mma")
    assert (p["consumers"], p["pack"]) == (cut or (0, 1))


def test_heads_with_lists_of_their_own_do_not() -> None:
    assert plan(block_q=64, group=4, shared_lists=False)["pack"] == 1
    assert plan(block_q=16, group=8, shared_lists=False)["kernel"] == "mma"


def test_backward_has_a_warpgroup_for_each_tile() -> None:
    for part in ("by query", "by key"):
        for block in (64, 128):
            p = plan(part=part, block_q=block, block_kv=block, group=4, shared_lists=False)
            assert p["kernel"] == "hopper"
            assert (p["consumers"], p["rows"], p["pack"]) == (1, 64, 1)
        assert plan(part=part, hopper=False)["kernel"] == "mma"
        assert plan(part=part, value_dim=136)["kernel"] == "plain"


@pytest.mark.parametrize(
    ("part", "block_q", "block_kv", "group", "pack"),
    [
        ("by query", 32, 16, 4, 2), ("by query", 16, 128, 8, 4), ("by query", 32, 128, 3, None),
        ("by key", 16, 128, 8, 1), ("by key", 128, 32, 8, None), ("by key", 16, 16, 1, None),
    ],
)  # fmt: skip
def test_backward_packs_queries_only(part, block_q, block_kv, group, pack) -> None:
    p = plan(part=part, block_q=block_q, block_kv=block_kv, group=group)
    assert p["kernel"] == ("hopper" if pack else "mma")
    assert p["pack"] == (pack or 1)


def test_backward_without_a_mask() -> None:
    assert plan(part="by key", dense=True, block_kv=16, seq_kv=33)["rows"] == 64
    assert plan(part="by key", dense=True, seq_kv=32, group=8)["kernel"] == "mma"
    assert plan(part="by query", dense=True, seq_q=32, group=8)["pack"] == 2


def test_unknown_part() -> None:
    with pytest.raises(ValueError, match="no part"):
        plan(part="sideways")


def test_without_a_mask_tiles_follow_the_length() -> None:
    assert plan(dense=True, block_q=64, seq_q=4096)["rows"] == 128
    assert plan(dense=True, block_q=64, seq_q=1, group=8) == plan(
        dense=True, block_q=128, seq_q=16, group=8, shared_lists=False
    )
    assert plan(dense=True, seq_q=1, group=1)["kernel"] == "mma"


@pytest.mark.parametrize(
    ("head_dim", "value_dim", "channels", "columns", "blocks"),  # the latter of 2 and 1 consumers
    [
        (8, 8, 64, (128, 128), (1, 2)), (64, 72, 96, (128, 64), (1, 2)),
        (128, 64, 128, (128, 64), (1, 2)), (192, 128, 192, (64, 64), (1, 1)),
        (64, 200, 256, (64, 64), (1, 1)),
    ],
)  # fmt: skip
def test_a_tile_has_the_columns_that_fit(head_dim, value_dim, channels, columns, blocks) -> None:
    for block, consumers, i in ((128, 2, 0), (64, 1, 1)):
        p = plan(block_q=block, head_dim=head_dim, value_dim=value_dim)
        assert (p["kernel"], p["consumers"]) == ("hopper", consumers)
        assert (p["channels"], p["columns"], p["blocks"]) == (channels, columns[i], blocks[i])


@given(
    st.sampled_from(BLOCKS), st.sampled_from(BLOCKS), st.integers(1, 300), st.integers(1, 12),
    st.booleans(), st.booleans(), st.sampled_from((64, 96, 128, 192, 256)),
    st.sampled_from(("forward", "by query", "by key")),
)  # fmt: skip
def test_a_cut_covers_the_rows(
    block_q, block_kv, length, group, dense, shared, channels, part
) -> None:
    p = plan(
        part=part, block_q=block_q, block_kv=block_kv, seq_q=length, seq_kv=length, group=group,
        dense=dense, shared_lists=shared, head_dim=channels, value_dim=8,
    )  # fmt: skip
    if p["kernel"] != "hopper":
        return
    assert p["rows"] * p["pack"] == 64 * p["consumers"]
    assert group % p["pack"] == 0
    block = block_kv if part == "by key" else block_q
    assert dense or p["rows"] == min(block, 128 if part == "forward" else 64)
    if part != "forward":
        return
    # Blocks that share an SM share its 228 KB.
    row = 128 * -(-channels // 64)
    shared_bytes = (64 * p["consumers"] + 4 * p["columns"]) * row + 1024
    assert shared_bytes * p["blocks"] <= 227 * 1024


def test_rows_are_sorted_where_it_may_matter() -> None:
    assert order()["sorted"]
    assert not order(dense=True)["sorted"]
    assert not order(seq_q=128, batch=64)["sorted"]  # lists of one row
    assert not order(seq_q=128 * 16)["sorted"]  # 128 tiles, all at once
    assert order(seq_q=128 * 17)["sorted"]
    assert order(seq_q=128 * 16, tile_rows=64)["parts"] == 2
    assert order(seq_q=128 * 16, tile_rows=64)["sorted"]


def test_a_section_of_heads_shares_half_of_the_cache() -> None:
    mib = 2**20  # K and V of a head: 4 MiB
    assert order(heads=16, kv_heads=16, l2_bytes=32 * mib)["section"] == (1, 4)
    # Eight query heads read them.
    assert order(heads=64, kv_heads=8, l2_bytes=8 * mib)["section"] == (1, 8)
    # A section divides what has one list, and has a wave of tiles at least.
    assert order(heads=15, kv_heads=15, l2_bytes=32 * mib)["section"] == (1, 3)
    assert order(heads=16, kv_heads=16, l2_bytes=0, wave=65)["section"] == (1, 2)
    # Heads with lists of their own are sorted together.
    lists = {"heads": 16, "kv_heads": 16, "mask_heads": 16, "l2_bytes": 32 * mib}
    assert order(**lists)["section"] == (4, 1)
    assert order(**lists, batch=2)["section"] == (2, 2)
    assert order(**lists, batch=2)["samples_inner"]
    assert order(**lists, batch=2, mask_batch=2)["section"] == (4, 1)
    assert order(batch=9, mask_batch=9, l2_bytes=256 * mib)["section"] == (4, 8)


def test_lists_of_a_group_are_one_by_key() -> None:
    p = order(by_key=True, heads=16, kv_heads=4, mask_heads=16, mask_batch=2, batch=2)
    assert (p["lists"], p["members"], p["heads"]) == (8, 4, 8)
    p = order(by_key=True, heads=16, kv_heads=4)
    assert (p["lists"], p["members"], p["heads"]) == (1, 1, 4)


@given(
    st.booleans(), st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.booleans(),
    st.booleans(), st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(BLOCKS),
    st.sampled_from((16, 32, 64)), st.integers(1, 300), st.integers(0, 2**24),
)  # fmt: skip
def test_sections_hold_every_head_once(
    by_key, batch, kv_heads, group, own_batch, own_heads, seq_q, seq_kv, block, tile, wave, l2
) -> None:
    heads, tile = kv_heads * group, min(tile, block)
    p = order(
        by_key=by_key, batch=batch, heads=heads, kv_heads=kv_heads, seq_q=seq_q, seq_kv=seq_kv,
        mask_batch=batch if own_batch else 1, mask_heads=heads if own_heads else 1,
        block_q=block, block_kv=block, tile_rows=tile, wave=wave, l2_bytes=l2,
    )  # fmt: skip
    lists, each = p["section"]
    assert p["rows"] == -(-(seq_kv if by_key else seq_q) // block)
    assert p["parts"] == block // tile
    assert p["heads"] == batch * (kv_heads if by_key else heads)
    assert p["heads"] == p["lists"] * each * p["repeats"]
    assert 1 <= lists <= p["lists"]
    assert lists == 1 or p["repeats"] == 1
    everything = (p["lists"], p["heads"] // p["lists"])
    assert lists * each * p["rows"] * p["parts"] >= wave or (lists, each) == everything


def test_rows_are_split_where_they_may_be_long() -> None:
    few = {"heads": 1, "kv_heads": 1, "seq_q": 512, "columns": 128}
    assert order(heads=1, kv_heads=1, seq_q=512)["slots"] == 0
    assert order(**few, seq_kv=4096)["slots"] == 0  # one wave of short rows
    assert order(**few, seq_kv=16384)["slots"] == 4  # no more than rows
    assert order(**few, seq_kv=16384)["sorted"]
    assert order(**few, seq_kv=16384, dense=True)["slots"] == 0
    assert order(heads=1, kv_heads=1, columns=128, seq_q=2**17)["slots"] == 1024
    assert order(heads=16, kv_heads=16, columns=128, seq_q=2**17)["slots"] == 66


@given(
    st.integers(1, 5), st.integers(1, 40), st.booleans(), st.booleans(), st.integers(1, 2**18),
    st.sampled_from(BLOCKS), st.integers(1, 300), st.integers(0, 2**26),
)  # fmt: skip
def test_memory_of_pieces_is_bounded(
    batch, heads, own_batch, own_heads, seq, block, wave, l2
) -> None:
    p = order(
        batch=batch, heads=heads, kv_heads=heads, mask_batch=batch if own_batch else 1,
        mask_heads=heads if own_heads else 1, seq_q=seq, seq_kv=seq, block_q=block, block_kv=block,
        tile_rows=block, wave=wave, l2_bytes=l2, columns=128,
    )  # fmt: skip
    lists, each = p["section"]
    listed = lists * p["rows"]
    if p["slots"] == 0:
        assert p["tiles"] == p["rows"] * p["heads"]
        return
    assert p["sections"] == -(-p["lists"] // lists) * p["repeats"]
    assert 2 <= p["slots"] <= listed
    assert p["sections"] * p["slots"] * each <= 8 * wave
    assert p["tiles"] == p["sections"] * (listed + p["slots"]) * each
