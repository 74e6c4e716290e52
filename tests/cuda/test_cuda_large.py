"""Tensors of more than 2**31 elements in memory: the far end is computed from the far end. Needs a
GPU with the memory; rows are compared with the same rows alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastops
from tests.numerics import same_bits

GIB = 1 << 30
FAR = (1 << 31) + (1 << 20)  # elements
N = 8192


def needs(gib: float) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / GIB
    if free < gib:
        pytest.skip(f"needs {gib} GiB of GPU memory, {free:.0f} are free")


def far_tensor(rows: int, n: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """[rows, n], rows * n > 2**31; no two rows that a wrapped index could confuse are alike."""
    assert rows * n > 1 << 31
    x = torch.empty(rows, n, dtype=dtype, device="cuda")
    pattern = torch.randn(1021, n, device="cuda").to(dtype)  # 1021 rows do not divide 2**31
    for begin in range(0, rows, 1021):
        x[begin : begin + 1021] = pattern[: rows - begin]
    return x


def picks(rows: int) -> Tensor:
    return torch.tensor([0, 1, rows // 2, rows - 2, rows - 1], device="cuda")


ROW_WISE: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": fastops.softmax,
    "log_softmax": fastops.log_softmax,
    "logsumexp": lambda x: fastops.logsumexp(x),
    "softmax_topk": lambda x: fastops.softmax_topk(x, 8)[0],
    "sparsemax": fastops.sparsemax,
    "entmax15": fastops.entmax15,
    "softpick": fastops.softpick,
    "stablemax": fastops.stablemax,
    "nm_prune": lambda x: fastops.nm_prune(x, "2:4"),
}


@pytest.mark.large
@pytest.mark.parametrize("op", ROW_WISE)
def test_far_rows(op: str) -> None:
    needs(14)
    x = far_tensor(FAR // N, N)
    at = picks(x.shape[0])
    assert same_bits(ROW_WISE[op](x)[at], ROW_WISE[op](x[at]))


@pytest.mark.large
@pytest.mark.parametrize("op", ["softmax", "log_softmax", "entmax15"])
def test_far_rows_backward(op: str) -> None:
    needs(30)
    f = getattr(fastops, op)
    x = far_tensor(FAR // N, N)
    at = picks(x.shape[0])

    def gradient(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(f(leaf), leaf, x)[0]

    assert same_bits(gradient(x)[at], gradient(x[at]))


@pytest.mark.large
def test_far_columns() -> None:
    """Reduced over the first dim: neighbours are 2**17 elements apart."""
    needs(14)
    x = far_tensor(FAR // (1 << 17), 1 << 17)
    columns = slice((1 << 17) - 64, 1 << 17)
    far = fastops.softmax(x, 0)[:, columns]
    torch.testing.assert_close(far, fastops.softmax(x[:, columns].contiguous(), 0))


@pytest.mark.large
def test_one_row() -> None:
    """Every element of a row of 2**31 + 2**20: the greatest is the last."""
    needs(14)
    x = torch.zeros(1, FAR, dtype=torch.bfloat16, device="cuda")
    x[0, -1] = 40.0
    y = fastops.softmax(x)
    assert y[0, -1].item() > 0.99 and y[0, : 1 << 20].max().item() < 1e-16


@pytest.mark.large
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8"])
@pytest.mark.parametrize("features, out", [(4096, 64), (64, 4096)])
def test_far_rows_of_a_product(features: int, out: int, pattern: str) -> None:
    """More than 2**31 elements of x, then of the result."""
    needs(12)
    wide = max(features, out)
    x = torch.empty(FAR // wide, features, dtype=torch.bfloat16, device="cuda")
    values = torch.randn(1021, features, device="cuda").to(x.dtype)
    for begin in range(0, x.shape[0], 1021):
        x[begin : begin + 1021] = values[: x.shape[0] - begin]
    w = torch.randn(out, features, device="cuda").to(x.dtype) * features**-0.5
    weight = fastops.nm_compress(fastops.nm_prune(w, pattern), pattern)
    at = picks(x.shape[0])
    expected = torch.nn.functional.linear(x[at].double(), weight.dense().double())
    got = fastops.nm_linear(x, weight)[at].double()
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.large
def test_far_tokens() -> None:
    needs(20)
    n, c = 64, 1024
    x = far_tensor(FAR // c // n * n, c).view(-1, n, c)
    plan = fastops.match_tokens(x[..., :16], r=10)
    y = fastops.merge_tokens(x, plan)
    back = fastops.unmerge_tokens(y, plan)
    at = picks(x.shape[0])
    alone = fastops.match_tokens(x[at][..., :16], r=10)
    assert torch.equal(plan.map[at], alone.map)
    assert same_bits(y[at], fastops.merge_tokens(x[at], alone))
    assert same_bits(back[at], fastops.unmerge_tokens(y[at], alone))
