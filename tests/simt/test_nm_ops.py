"""The CUDA kernels of the N:M family, run on the host through the real ops (see
test_softmax_ops.py). Each kernel is reached on purpose; every launch is checked."""

from __future__ import annotations

import pytest
import torch

import fastops
from fastops._lib import _native
from tests.nm.samples import DTYPES, judge, randn, sparse
from tests.simt.emulator import ORDERS, emulator, launched

pytestmark = pytest.mark.usefixtures("order")
HALVES = DTYPES[1:]
PACKED = {"nm pack", "nm gather"}


# Kernel -> (rows, out, in). Ragged on purpose; in: more tiles than the ring has stages.
SPARSE = {
    frozenset({"nm sparse_stream"}): [(1, 70, 72), (7, 64, 200), (13, 65, 136)],
    frozenset({"nm sparse_stream", "nm add_splits"}): [(3, 40, 1032)],
    frozenset({"nm sparse_matmul"}): [(33, 130, 456), (131, 70, 328)],
    frozenset({"nm sparse_matmul", "nm add_splits"}): [(20, 66, 1096)],
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("pattern", ["2:4", "1:8"])
def test_sparse_tensor_cores(dtype, pattern):
    for kernels, shapes in SPARSE.items():
        for rows, out, features in shapes:
            w, weight = sparse(out, features, pattern, dtype)
            bias = randn(out, dtype=dtype, seed=2)
            x = randn(rows, features, dtype=dtype)
            launched()
            y = fastops.nm_linear(x, weight, bias, "relu")
            assert launched() == kernels | PACKED
            judge(y, x, w, bias, "relu")


# (rows of a block, blocks of a cluster, splits) -> (rows, out, in, pattern), on 4 SMs. At least
# five tiles of 64 inputs, in each first shape without splits more than the ring holds; ragged ends.
WGMMA = {
    (128, 1, 1): [(100, 70, 904, "2:4"), (131, 90, 328, "1:8")],
    (128, 2, 1): [(97, 200, 840, "2:4")],
    (128, 4, 1): [(90, 400, 840, "2:8"), (81, 840, 328, "2:4")],  # 7 blocks of outputs: one idle
    (256, 1, 1): [(260, 72, 456, "2:4"), (600, 61, 320, "1:4")],
    (256, 2, 1): [(131, 136, 456, "2:4"), (1100, 200, 328, "2:4")],  # 5 tiles of rows: 4 and 1
    (256, 4, 1): [(150, 390, 456, "1:16")],
    (128, 2, 2): [(100, 130, 1032, "2:4")],
    (128, 1, 4): [(90, 40, 2072, "2:4")],
}


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setenv("FASTOPS_SM90", "1")


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("cut", WGMMA)
def test_wgmma(hopper, dtype, cut):
    for rows, out, features, pattern in WGMMA[cut]:
        plan = _native.nm_cuda_plan(
            rows=rows, out=out, in_features=features, sm_count=4, wgmma=True
        )
        assert (plan["rows"], plan["cluster"], plan["splits"]) == cut
        w, weight = sparse(out, features - features % int(pattern[2:]), pattern, dtype)
        bias = randn(out, dtype=dtype, seed=2)
        x = randn(rows, w.shape[1], dtype=dtype)
        launched()
        y = fastops.nm_linear(x, weight, bias, "relu")
        assert (
            launched()
            == {"nm wgmma_matmul"} | ({"nm add_splits"} if cut[2] > 1 else set()) | PACKED
        )
        judge(y, x, w, bias, "relu")


@pytest.mark.parametrize("dtype", HALVES)
def test_wgmma_takes_each_element_from_its_place(hopper, dtype):
    """Exact: one element of each row of the weight, then small integers in every pair of places."""
    rows, out, features = 81, 330, 328
    one = torch.zeros(out, features, dtype=dtype)
    one[torch.arange(out), torch.arange(out) * 5 % features] = 1
    signs = torch.sign(randn(out, features)).to(dtype)
    pairs = fastops.nm_prune(signs, "2:4", scores=randn(out, features, seed=5).abs())
    x = torch.randint(-8, 9, (rows, features), generator=torch.Generator().manual_seed(3))
    x = x.to(dtype)
    for w in (one, pairs):
        launched()
        y = fastops.nm_linear(x, fastops.nm_compress(w, "2:4"))
        assert "nm wgmma_matmul" in launched()
        assert torch.equal(y, (x.double() @ w.double().t()).to(dtype))


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_wgmma_finishes_every_way(hopper, activation):
    """y by TMA, which a row of y of 16-byte steps allows, and by element; bias or none."""
    for dtype, out, with_bias in zip(HALVES * 2, (72, 70, 75, 136), (True, False) * 2, strict=True):
        w, weight = sparse(out, 328, "2:4", dtype)
        bias = randn(out, dtype=dtype, seed=2) if with_bias else None
        for rows in (88, 270):
            x = randn(rows, 328, dtype=dtype)
            launched()
            y = fastops.nm_linear(x, weight, bias, activation)
            assert "nm wgmma_matmul" in launched()
            judge(y, x, w, bias, activation)


@pytest.mark.parametrize("early", [0, 1])
def test_wgmma_in_every_schedule(hopper, order, early):
    """Alone, in a cluster of 2 and of 4: rings that go round, sums through shared memory twice."""
    emulator().simt_configure(ORDERS[order], early, 11)
    for rows, out, features in [(300, 72, 520), (140, 200, 520), (140, 512, 392)]:
        w, weight = sparse(out, features, "2:4", torch.float16)
        x = randn(rows, features, dtype=torch.float16)
        judge(fastops.nm_linear(x, weight, None, "silu"), x, w, None, "silu")


@pytest.mark.parametrize("dtype", HALVES)
def test_wgmma_rows_that_tma_can_address(hopper, dtype):
    """Others go to the kernel for any rows, and so do few rows."""
    w, weight = sparse(40, 336, "2:4", dtype)
    base = randn(90, 2, 344, dtype=dtype)
    unmerged = randn(3, 46, 2, 336, dtype=dtype)[:, 1:31, 0]
    for x, wgmma in [
        (base[:, 1, :336], True),
        (base[:, 0, 8:], True),
        (base[:81, 0, :336], True),
        (base[:80, 0, :336], False),
        (base[:, 0, 1:337], False),  # starts between
        (base[:1, 0, :336].expand(90, 336), False),
        (randn(90, 337, dtype=dtype)[:, :336], False),  # steps between
        (randn(336, 90, dtype=dtype).t(), False),
        (unmerged, False),
    ]:
        launched()
        y = fastops.nm_linear(x, weight)
        assert ("nm wgmma_matmul" in launched()) == wgmma
        judge(y.reshape(-1, 40), x.reshape(-1, 336).contiguous(), w, None)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows", [2, 15, 35])
def test_unaligned_and_strided_rows(dtype, rows):
    w, weight = sparse(40, 336, "2:4", dtype)
    base = randn(rows, 2, 337, dtype=dtype)
    for x in (base[:, 1, 1:], base[:, 0, :336], randn(336, rows, dtype=dtype).t()):
        judge(fastops.nm_linear(x, weight), x.contiguous(), w, None)
    grid = randn(3, 5, 2, 336, dtype=dtype)[:, 1:, 0]  # two leading dims that do not merge
    y = fastops.nm_linear(grid, weight)
    judge(y.flatten(0, 1), grid.flatten(0, 1), w, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["3:4", "4:8", "5:7", "3:32"])
def test_expanded_tiles(dtype, pattern):
    m = int(pattern.split(":")[1])
    w, weight = sparse(70, m * (170 // m), pattern, dtype)
    for rows in (1, 67):
        x = randn(rows, w.shape[1], dtype=dtype)
        launched()
        y = fastops.nm_linear(x, weight, None, "silu")
        assert launched() == {"nm dense_matmul"}
        judge(y, x, w, None, "silu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["2:4", "3:5"])
def test_gradients(dtype, pattern):
    m = int(pattern.split(":")[1])
    w, weight = sparse(70, m * (140 // m), pattern, dtype)
    weight.requires_grad_()
    x = randn(37, w.shape[1], dtype=dtype).requires_grad_()
    grad = randn(37, 70, dtype=dtype, seed=4)
    y = fastops.nm_linear(x, weight)
    launched()
    y.backward(grad)
    assert launched() == {"nm dense_matmul", "nm weight_grad"}
    judge(x.grad, grad, w.t().contiguous(), None)
    dense = (grad.double().t() @ x.detach().double()).gather(1, weight.columns())
    size = (grad.double().abs().t() @ x.detach().double().abs()).gather(1, weight.columns())
    limit = torch.finfo(dtype).eps * dense.abs() + torch.finfo(torch.float32).eps * size
    assert ((weight.values.grad.double() - dense).abs() <= limit).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gather(dtype):
    values = randn(33, 24, dtype=dtype)
    source = torch.randint(-1, values.numel(), (700,), dtype=torch.int32)
    packed = torch.ops.fastops._nm_gather(values, source)
    assert launched() == {"nm gather"}
    assert torch.equal(packed, torch.where(source < 0, 0, values.flatten()[source]).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pruning_and_compression(dtype):
    w = randn(33, 96, dtype=dtype)
    for pattern in ("2:4", "1:2", "3:8", "5:32", "2:3"):
        launched()
        pruned = fastops.nm_prune(w, pattern, scores=w.float().abs())
        weight = fastops.nm_compress(pruned, pattern)
        assert launched() == {"nm select", "nm none_bad", "nm compress"}
        assert torch.equal(weight.dense(), pruned) and launched() == {"nm decompress"}
        fastops.NMWeight(weight.values, weight.indices, pattern, 96)
        assert launched() == {"nm none_bad", "nm check"}
        with pytest.raises(ValueError, match="expected at most"):
            fastops.nm_compress(w, pattern)
