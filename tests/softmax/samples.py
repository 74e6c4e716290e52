"""Random arguments for the softmax tests; the same shape always gives the same numbers."""

import torch
from torch import Tensor


def generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(key) % 2**31)


def randn(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    spread: float = 1,
    key: int = 0,
) -> Tensor:
    """Normal numbers of standard deviation `spread`, off centre, so that the maximum matters."""
    values = torch.randn(shape, generator=generator(key, *shape)) * spread + 2 * spread
    return values.to(dtype).to(device)


def booleans(*shape: int, device: str = "cpu", share: float = 0.6, key: int = 0) -> Tensor:
    """True with probability `share`."""
    return (torch.rand(shape, generator=generator(key, *shape)) < share).to(device)


def integers(
    low: int,
    high: int,
    *shape: int,
    dtype: torch.dtype = torch.int64,
    device: str = "cpu",
    key: int = 0,
) -> Tensor:
    """From `low` to `high`, both included."""
    values = torch.randint(low, high + 1, shape, generator=generator(key, *shape))
    return values.to(dtype).to(device)
