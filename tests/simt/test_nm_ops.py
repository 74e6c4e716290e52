"""The CUDA kernels of the N:M family, run on the host through the real ops (see
test_softmax_ops.py). Each kernel is reached on purpose; every launch is checked."""

from __future__ import annotations

import pytest
import torch

import fastops
from tests.nm.samples import DTYPES, judge, randn, sparse
from tests.simt.emulator import launched

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
