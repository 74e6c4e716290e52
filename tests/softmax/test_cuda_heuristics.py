"""The CUDA heuristics as pure functions: no GPU, no CUDA build."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

_native = pytest.importorskip("fastops._lib._native", reason="the pybind11 module is not built")

H200 = {"sm_count": 132, "major": 9, "shared_optin": 232448}
A100 = {"sm_count": 108, "major": 8, "shared_optin": 166912}
BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
VECTOR = 16


def counts(largest: int) -> list[int]:
    """Clusters of 1, 2, 4, 8, 16 blocks that run at a time, none of more than `largest`."""
    return [132 // size if size <= largest else 0 for size in (1, 2, 4, 8, 16)]


def plan(rows: int, n: int, dtype: str = "bfloat16", **options) -> dict:
    return _native.softmax_cuda_plan(rows=rows, n=n, dtype=dtype, **{**H200, **options})


@pytest.mark.parametrize(
    ("n", "kernel"),
    [
        (1, "rows"),
        (64, "rows"),
        (1000, "rows"),
        (2048, "rows"),
        (4096, "block_row"),
        (16384, "block_row"),
        (32000, "stream"),
        (65536, "stream"),
        (1 << 20, "split"),
    ],
)
def test_kernel_grows_with_the_row(n: int, kernel: str) -> None:
    assert plan(4096, n)["kernel"] == kernel


def test_few_long_rows_are_split_over_the_chip() -> None:
    p = plan(1, 1 << 24, "float32")
    assert p["kernel"] == "split"
    assert p["blocks"] >= H200["sm_count"]
    assert p["workspace_bytes"] == 8 * p["blocks"]


def test_clusters_wait_for_a_record_from_hardware() -> None:
    for n in (32000, 65536, 131072, 1 << 20):
        assert plan(4096, n)["kernel"] != "cluster"
    for n, blocks in ((32000, 1), (65536, 2), (1 << 20, 16)):
        p = plan(4096, n, hopper=True)
        assert (p["kernel"], p["blocks_per_row"]) == ("cluster", blocks)
    assert plan(4096, 1 << 20, hopper=True, **A100)["kernel"] == "split"


@pytest.mark.parametrize(
    ("dtype", "backward", "block"),
    [
        ("bfloat16", False, 114_688), ("bfloat16", True, 57_344), ("float32", False, 57_344),
        ("float32", True, 28_672), ("float64", False, 28_672), ("float64", True, 14_336),
    ],
)  # fmt: skip
def test_the_longest_rows_that_shared_memory_holds(dtype: str, backward: bool, block: int) -> None:
    """The table of docs/softmax.md."""

    def kernel(n: int, **options) -> tuple[str, int]:
        p = plan(4096, n, dtype, backward=backward, aligned=True, **options)
        return p["kernel"], p["blocks_per_row"]

    assert kernel(block) == ("stream", 1)
    assert kernel(block + 1)[0] == "split"
    assert kernel(16 * block, hopper=True) == ("cluster", 16)
    assert not plan(4096, 16 * block, dtype, backward=backward, aligned=True, hopper=True)["beyond"]
    assert kernel(16 * block + 1, hopper=True) == kernel(40 * block, hopper=True) == ("cluster", 16)
    assert kernel(40 * block + 1, hopper=True)[0] == "split"
    assert plan(65, 1 << 17, dtype, backward=backward, hopper=True)["kernel"] == "split"
    assert plan(66, 1 << 17, dtype, backward=backward, hopper=True)["kernel"] == "cluster"


@pytest.mark.parametrize("n", [32000, 65536, 300_000, 800_000, 1 << 20])
def test_clusters_are_no_larger_than_the_device_launches(n: int) -> None:
    largest = plan(4096, n, hopper=True)
    assert largest["kernel"] == "cluster"
    for cluster in (16, 8, 4, 2, 1):
        p = plan(4096, n, hopper=True, clusters=counts(cluster))
        if largest["blocks_per_row"] <= cluster:
            assert p == largest
        else:  # in fewer blocks where their shared memory holds enough, else split over the chip
            assert p["kernel"] in ("cluster", "stream", "split")
            assert p["kernel"] == "split" or p["blocks_per_row"] <= cluster
            assert p["shared_bytes"] + 2048 <= H200["shared_optin"]
    assert plan(4096, 1 << 20, hopper=True, clusters=counts(2))["kernel"] == "split"


@pytest.mark.parametrize(("n", "cluster"), [(65536, 2), (200_000, 4), (400_000, 8), (1 << 20, 16)])
def test_no_more_clusters_than_run_at_a_time(n: int, cluster: int) -> None:
    """Where GPCs have odd numbers of SMs: one more would begin when another has done its rows."""
    few = [132, 61, 30, 13, 5]
    p = plan(4096, n, hopper=True, clusters=few)
    each = 2 if p["shared_bytes"] <= 112 * 1024 else 1
    assert p["blocks_per_row"] == cluster
    assert p["blocks"] == each * cluster * few[cluster.bit_length() - 1]
    assert plan(3, n, hopper=True, clusters=few, sm_count=4)["blocks"] == 3 * cluster


def test_rings_wait_for_a_record_from_hardware() -> None:
    for n, last in ((64, "ring"), (4096, "ring"), (8192, "ring"), (8200, "block_row")):
        assert plan(1 << 18, n)["kernel"] in ("rows", "block_row")
        assert plan(1 << 18, n, dense=True)["kernel"] in ("rows", "block_row")
        assert plan(1 << 18, n, dense=True, hopper=True)["kernel"] == last
    for options in ({"dense": False}, {"full": True}, A100):
        assert plan(1 << 18, 256, **{"dense": True, "hopper": True, **options})["kernel"] == "rows"
    assert plan(1 << 18, 63, dense=True, hopper=True)["kernel"] == "rows"


def test_rings_keep_an_sm_busy() -> None:
    """64 KB in flight or more, and a warp for each scheduler at least, at every length."""
    for dtype in ("bfloat16", "float32"):
        for n in range(64, 16384 // BYTES[dtype] + 1):
            p = plan(1 << 20, n, dtype, dense=True, hopper=True, aligned=n % 8 == 0)
            if p["kernel"] != "ring":
                continue
            blocks = p["blocks"] // H200["sm_count"]
            assert blocks * p["shared_bytes"] * (p["slots"] - 1) // p["slots"] >= 64 * 1024
            assert blocks * p["threads"] // 32 >= 4


def test_rows_across_memory() -> None:
    assert plan(8 * 256, 1000, contiguous=False, columns=256)["kernel"] == "column"
    assert plan(8 * 256, 1000, contiguous=False, columns=256, full=True)["kernel"] == "strided"
    assert plan(8 * 256, 1000, contiguous=False)["kernel"] == "strided"


@given(
    rows=st.integers(1, 1 << 40),
    n=st.one_of(st.integers(1, 5000), st.integers(1, 1 << 33)),
    dtype=st.sampled_from(sorted(BYTES)),
    backward=st.booleans(),
    full=st.booleans(),
    aligned=st.booleans(),
    hopper=st.booleans(),
    dense=st.booleans(),
    log=st.booleans(),
    device=st.sampled_from([H200, A100]),
)
def test_every_plan_covers_its_rows(
    rows, n, dtype, backward, full, aligned, hopper, dense, log, device
):
    p = plan(
        rows, n, dtype, backward=backward, full=full, aligned=aligned, hopper=hopper, dense=dense,
        log=log, **device,
    )  # fmt: skip
    per = VECTOR // BYTES[dtype]
    vectors = -(-(n + (0 if aligned else per - 1)) // per)
    inputs = 2 if backward else 1
    assert p["threads"] % 32 == 0 and 32 <= p["threads"] <= 512
    assert p["shared_bytes"] + 2048 <= device["shared_optin"] or p["shared_bytes"] == 0
    match p["kernel"]:
        case "rows":
            assert p["lanes"] in (1, 2, 4, 8, 16, 32)
            assert p["lanes"] * p["vecs"] >= vectors
            rows_per_block = p["threads"] // p["lanes"] * p["rows_in_flight"]
            assert (p["blocks"] - 1) * rows_per_block < rows <= p["blocks"] * rows_per_block
            assert p["vecs"] in ((1, 4) if full or dtype == "float64" else (1, 2, 4, 8))
            assert not (backward and p["vecs"] == 8)
        case "ring":
            assert hopper and device == H200 and dense and not full and dtype != "float64"
            assert p["lanes"] in (8, 16, 32) and p["group"] % (32 // p["lanes"]) == 0
            assert p["loop"] or p["lanes"] * p["vecs"] >= vectors
            assert p["vecs"] in ((1, 4) if backward or log else (1, 4, 8))
            bytes_copied = p["group"] * n * BYTES[dtype]
            assert bytes_copied % VECTOR == 0
            assert n * BYTES[dtype] >= 128 and 2048 <= inputs * bytes_copied <= 16384
            warps = p["threads"] // 32
            assert p["threads"] <= 128 and 2 <= p["slots"] <= 4
            assert p["shared_bytes"] == warps * p["slots"] * inputs * bytes_copied
            # Every warp has two slots to fill or more.
            assert 2 * warps * p["blocks"] <= -(-rows // p["group"])
            assert p["blocks"] % device["sm_count"] == 0
        case "block_row":
            assert p["blocks"] == rows and p["threads"] * 4 >= vectors
        case "stream" | "cluster":
            size = p["blocks_per_row"]
            assert size == 1 or (p["kernel"] == "cluster" and size in (2, 4, 8, 16))
            held = p["slots"] * 512 * size
            assert p["beyond"] == (held < vectors) and held >= 0.4 * vectors
            if p["beyond"]:
                assert p["kernel"] == "cluster" and size > 1
                assert p["shared_bytes"] + 512 * VECTOR * inputs + 2048 > device["shared_optin"]
            assert p["shared_bytes"] == p["slots"] * 512 * VECTOR * inputs
            assert p["blocks"] % size == 0 and 0 < p["blocks"] <= rows * size
        case "split":
            assert p["chunk"] % per == 0
            assert (p["blocks_per_row"] - 1) * p["chunk"] < n <= p["blocks_per_row"] * p["chunk"]
            assert p["blocks"] == rows * p["blocks_per_row"]
            # A thread adds at most 256 vector sums.
            assert p["chunk"] <= 256 * 256 * per
        case kernel:
            pytest.fail(f"contiguous rows must not run on the {kernel} kernel")


@given(rows=st.integers(1, 1 << 30), n=st.integers(1, 1 << 24), columns=st.integers(0, 4096))
def test_walks_cover_their_rows(rows: int, n: int, columns: int) -> None:
    columns *= 8
    p = plan(rows * max(columns, 1), n, contiguous=False, columns=columns)
    across = columns // 8 if p["kernel"] == "column" else rows * max(columns, 1)
    outer = rows if p["kernel"] == "column" else 1
    assert p["lanes"] * p["parts"] == p["threads"] <= 256
    assert p["parts"] & (p["parts"] - 1) == 0
    assert p["blocks"] == -(-across // p["lanes"]) * outer
