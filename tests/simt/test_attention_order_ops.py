"""The order in which attention's CUDA kernels take rows: longest list first, of equal ones the last
row first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastops
from fastops import BlockMask
from fastops._lib import _native
from tests.simt.emulator import emulator, launches
from tests.simt.simt_lib import library_path
from tests.simt.test_attention_ops import check

pytestmark = pytest.mark.usefixtures("order")
ORDER = "attention order"


def sections(offsets: np.ndarray, rows: int, nnz: int, members: int, section: int) -> np.ndarray:
    """What the kernel is to leave: of each section its rows, as list * rows + row."""
    at = np.clip(offsets, 0, nnz)
    lengths = np.maximum(at[1:] - at[:-1], 0).reshape(-1, members, rows).sum(1)
    lengths = np.minimum(lengths, 2**31 - 1)
    found = []
    for first in range(0, len(lengths), section):
        here = lengths[first : first + section]
        ties = [(i, r) for r in reversed(range(rows)) for i in range(len(here))]
        found += [i * rows + r for i, r in sorted(ties, key=lambda t: -here[t])]
    return np.array(found, np.int32)


def sort(offsets: np.ndarray, rows: int, nnz: int, members: int = 1, section: int = 1) -> None:
    count = (len(offsets) - 1) // members
    workspace = np.full(2 * count, -1, np.int32)
    _native.simt_call(
        str(library_path("libfastops_simt")), ORDER,
        {"offsets": offsets, "workspace": workspace}, {"order": workspace[:count]},
        rows=rows, nnz=nnz, members=members, section=section,
    )  # fmt: skip
    wanted = sections(offsets, rows, nnz, members, section)
    assert np.array_equal(workspace[:count], wanted)


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


@pytest.fixture
def small_device():
    """One SM, and an L2 that holds keys and values of few heads."""
    emulator().simt_set_device(1, 9, 0)
    yield
    emulator().simt_set_device(4, 9, 0)


@pytest.mark.usefixtures("small_device")
@pytest.mark.parametrize("own", [(1, 1), (1, 4), (3, 1), (3, 4)])
@pytest.mark.parametrize(
    ("dtype", "hopper"),
    [(torch.float32, "0"), (torch.float16, "0"), (torch.bfloat16, "1")],
    ids=["plain", "mma", "hopper"],
)
def test_every_tile_has_a_block(dtype, hopper, own, monkeypatch) -> None:
    """Sections of some heads, of lists and of samples, the last of them smaller; rows cut into
    tiles, of which the last row has not all."""
    monkeypatch.setenv("FASTOPS_SM90", hopper)
    for lengths, block in (((200, 230), (64, 64)), ((150, 390), (128, 32))):
        check(dtype, 64, 64, lengths, (4, 2), block, own=own, batch=3)


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
