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


def test_without_a_mask_tiles_follow_the_length() -> None:
    assert plan(dense=True, block_q=64, seq_q=4096)["rows"] == 128
    assert plan(dense=True, block_q=64, seq_q=1, group=8) == plan(
        dense=True, block_q=128, seq_q=16, group=8, shared_lists=False
    )
    assert plan(dense=True, seq_q=1, group=1)["kernel"] == "mma"


@given(
    st.sampled_from(BLOCKS), st.sampled_from(BLOCKS), st.integers(1, 300), st.integers(1, 12),
    st.booleans(), st.booleans(), st.sampled_from((64, 128)),
)  # fmt: skip
def test_a_cut_covers_the_rows(block_q, block_kv, seq_q, group, dense, shared, channels) -> None:
    p = plan(
        block_q=block_q, block_kv=block_kv, seq_q=seq_q, group=group, dense=dense,
        shared_lists=shared, head_dim=channels, value_dim=8,
    )  # fmt: skip
    if p["kernel"] != "hopper":
        return
    assert p["rows"] * p["pack"] == 64 * p["consumers"]
    assert group % p["pack"] == 0
    assert p["tiles"] * p["rows"] >= seq_q > (p["tiles"] - 1) * p["rows"]
    assert dense or p["rows"] == block_q
    # Two blocks of one consumer share the 228 KB of an SM.
    row = 2 * channels
    shared_bytes = (64 * p["consumers"] + 4 * p["columns"]) * row + 1024
    assert shared_bytes * (3 - p["consumers"]) <= 227 * 1024
