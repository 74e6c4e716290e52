"""Buffers that are made once and handed out as views.

Fresh memory costs page faults, and random numbers cost more than the kernels that read them; a pool
keeps both out of the measurement and out of the waiting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

SPREAD = 4.0  # standard deviation of the scores: rows with a clear maximum, as real logits have


class Pool:
    def __init__(self, device: str, capacity: int) -> None:
        """`capacity`: bytes that most tensors will stay within; larger ones grow their buffer."""
        self.device = device
        self._capacity = capacity
        self._flat: dict[tuple[str, torch.dtype, int], torch.Tensor] = {}

    def scores(self, shape: Sequence[int], dtype: torch.dtype, index: int = 0) -> torch.Tensor:
        """Normal numbers with standard deviation SPREAD."""
        return self._view("scores", shape, dtype, index)

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, index: int = 0, role: str = "out"
    ) -> torch.Tensor:
        return self._view(role, shape, dtype, index)

    def _view(
        self, role: str, shape: Sequence[int], dtype: torch.dtype, index: int
    ) -> torch.Tensor:
        key, numel = (role, dtype, index), math.prod(shape)
        flat = self._flat.get(key)
        if flat is None or flat.numel() < numel:
            size = max(numel, self._capacity // dtype.itemsize)
            flat = torch.empty(size, dtype=dtype, device=self.device)
            if role == "scores":
                fill_normal(flat)
            else:
                flat.zero_()  # touch every page now
            self._flat[key] = flat
        return flat[:numel].view(tuple(shape))


def fill_normal(flat: torch.Tensor) -> None:
    """A block of normal numbers, repeated: drawing all of them would take most of a short run.

    The block is odd-sized, so that rows of even lengths do not repeat each other.
    """
    generator = torch.Generator(device=flat.device).manual_seed(0)
    block = min(flat.numel(), (1 << 20) + 7)
    values = torch.randn(block, generator=generator, device=flat.device) * SPREAD
    values = values.to(flat.dtype)
    for begin in range(0, flat.numel(), block):
        flat[begin : begin + block] = values[: flat.numel() - begin]
