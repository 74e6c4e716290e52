"""The CUDA heuristics as pure functions: no GPU, no CUDA build."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

_native = pytest.importorskip("fastops._lib._native", reason="the pybind11 module is not built")
plan = _native.attention_cuda_plan
BLOCKS = (16, 32, 64, 128)


def test_hopper_waits_to_be_turned_on() -> None:
    assert plan(hopper=True)["kernel"] == "hopper"
    assert plan(hopper=False)["kernel"] == "mma"
    assert plan(head_dim=192)["kernel"] == "mma"
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
        assert plan(part=part, value_dim=136)["kernel"] == "mma"


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


@given(
    st.sampled_from(BLOCKS), st.sampled_from(BLOCKS), st.integers(1, 300), st.integers(1, 12),
    st.booleans(), st.booleans(), st.sampled_from((64, 128)),
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
    assert p["tiles"] * p["rows"] >= length > (p["tiles"] - 1) * p["rows"]
    block = block_kv if part == "by key" else block_q
    assert dense or p["rows"] == min(block, 128 if part == "forward" else 64)
    if part != "forward":
        return
    # Two blocks of one consumer share the 228 KB of an SM.
    row = 2 * channels
    shared_bytes = (64 * p["consumers"] + 4 * p["columns"]) * row + 1024
    assert shared_bytes * (3 - p["consumers"]) <= 227 * 1024
