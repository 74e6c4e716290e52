"""Weights, activations and the judgement that the N:M tests share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import fastops
from fastops.nm.reference import ACTIVATIONS
from tests.numerics import assert_ratio, exact, measure

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Every index width, N that divides a word of indices and N that does not, M that is no power of 2.
PATTERNS = ["2:4", "1:4", "2:8", "1:8", "1:2", "1:1", "3:4", "4:8", "1:16", "2:16", "5:7", "3:32"]
ALL_PATTERNS = [f"{n}:{m}" for m in range(1, 17) for n in range(1, m + 1)]


def randn(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype).to(device)


def sparse(out: int, features: int, pattern: str, dtype=torch.float32, device="cpu", seed=1):
    """(dense weight of the pattern, NMWeight)."""
    w = fastops.nm_prune(randn(out, features, dtype=dtype, device=device, seed=seed), pattern)
    return w, fastops.nm_compress(w, pattern)


def judge(got: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, activation: str | None = None):
    """The ratio rule, with torch's dense product as the peer. An error counts against the sum of
    the magnitudes that were added up."""

    def product(dtype):
        b = None if bias is None else bias.to(dtype)
        return ACTIVATIONS[activation](F.linear(x.to(dtype), w.to(dtype), b))

    def size_of(x):
        size = x.double().abs() @ w.double().abs().t()
        return size if bias is None else size + bias.double().abs()

    # What torch errs on many rows: on a few it may be exact by chance.
    many = randn(64, x.shape[-1], dtype=x.dtype, device=x.device.type, seed=9)
    luck = measure(
        F.linear(many, w, bias),
        exact(F.linear(many.double(), w.double(), None if bias is None else bias.double())),
        exact(size_of(many)),
    )
    assert_ratio(
        got, exact(product(torch.float64)), product(x.dtype).cpu(), size=exact(size_of(x)),
        luck=luck,
    )  # fmt: skip
