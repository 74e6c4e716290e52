"""The choice between the kernels of sparse tensor cores: no GPU, no CUDA build."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

_native = pytest.importorskip("fastops._lib._native", reason="the pybind11 module is not built")


def plan(rows: int, out: int = 4096, in_features: int = 4096, **options) -> dict:
    return _native.nm_cuda_plan(rows=rows, out=out, in_features=in_features, **options)


@pytest.mark.parametrize(
    ("rows", "kernel"),
    [(1, "stream"), (16, "stream"), (17, "tiles"), (80, "tiles"), (81, "wgmma"), (8192, "wgmma")],
)
def test_the_kernel_by_rows(rows: int, kernel: str) -> None:
    assert plan(rows, wgmma=True)["kernel"] == kernel
    assert plan(rows)["kernel"] == ("tiles" if kernel == "wgmma" else kernel)


def test_rows_of_a_block_keep_the_chip_busy() -> None:
    assert plan(128, wgmma=True)["rows"] == 128
    assert plan(512, wgmma=True)["rows"] == 128  # 64 blocks of 256 rows would be too few
    assert plan(4096, wgmma=True)["rows"] == 256
    assert plan(512, out=14336, wgmma=True)["rows"] == 256


@pytest.mark.parametrize(
    ("out", "cluster"), [(64, 1), (200, 2), (384, 1), (512, 4), (768, 2), (896, 4), (11008, 4)]
)
def test_a_cluster_has_few_blocks_to_fill_it_up(out: int, cluster: int) -> None:
    assert plan(4096, out, wgmma=True)["cluster"] == cluster
    assert plan(4096, out)["cluster"] == 1


def test_few_tiles_share_the_inputs() -> None:
    assert plan(128, 1024, 8192, wgmma=True)["splits"] == 16
    assert plan(128, 4096, 4096, wgmma=True)["splits"] == 4
    assert plan(128, 1024, 512, wgmma=True)["splits"] == 1
    assert plan(8192, wgmma=True)["splits"] == 1


@given(
    rows=st.integers(1, 1 << 20),
    out=st.integers(1, 1 << 16),
    in_features=st.integers(1, 1 << 16),
    sm_count=st.integers(1, 200),
    wgmma=st.booleans(),
)
def test_every_plan_can_run(rows, out, in_features, sm_count, wgmma) -> None:
    p = plan(rows, out, in_features, sm_count=sm_count, wgmma=wgmma)
    assert 1 <= p["splits"] <= 16
    assert p["splits"] == 1 or -(-in_features // 64) >= 8 * p["splits"]
    assert p["rows"] in {"stream": (8, 16), "tiles": (64, 128), "wgmma": (128, 256)}[p["kernel"]]
    assert p["outputs"] == (64 if p["kernel"] == "stream" else 128)
    assert p["cluster"] in ((1, 2, 4) if p["kernel"] == "wgmma" else (1,))
    blocks = -(-out // p["outputs"])
    assert -blocks % p["cluster"] * 6 <= blocks
