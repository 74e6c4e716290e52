"""Which tokens are sources and which are destinations."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .. import _checks as check

PARTITIONS = ("alternate", "kth", "random", "grid")


@dataclass(frozen=True)
class Partition:
    """What the ops are told, and how many sources merge at most."""

    tokens: Tensor | None  # int32 [1 or B, N]: sources, destinations, the rest
    num_src: int
    num_dst: int
    k: int
    r: int

    @property
    def args(self) -> tuple:
        return self.tokens, self.num_src, self.num_dst, self.k

    def rows(self, n: int, threshold: bool, padding: bool) -> int:
        """Rows that any sample may need. Where fewer than r sources can merge because of padding,
        either all that exist did, or there was no destination."""
        if threshold:
            return n
        if padding:
            return min(n, max(n - self.r, self.num_src + 1, self.num_dst + 1))
        return n - self.r


def make_partition(
    name: str,
    partition: Any,
    batch: int,
    n: int,
    r: int | None,
    k: Any,
    grid: Any,
    stride: Any,
    class_token: bool,
    distill_token: bool,
    generator: torch.Generator | None,
    device: torch.device,
) -> Partition:
    check.one_of(name, "partition", partition, PARTITIONS)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"{name}: expected generator to be a torch.Generator, got {type(generator).__name__}"
        )
    protected = [t for t, on in ((0, class_token), (1, distill_token)) if on and t < n]
    if partition == "random":
        return _random(batch, n, r, protected, generator, device)
    if partition == "grid":
        return _grid(name, n, r, grid, stride, protected, generator, device)
    if partition == "alternate":
        k = 2
    if isinstance(k, bool) or not isinstance(k, Integral):
        raise TypeError(f"{name}: expected k to be an int, got {type(k).__name__}")
    if k < 2:
        raise ValueError(f"{name}: expected k >= 2, got {k}")
    num_dst = n // k
    num_src = n - num_dst
    fixed_dst = sum(t % k == k - 1 for t in protected)
    most = num_src - (len(protected) - fixed_dst) if num_dst > fixed_dst else 0
    if partition == "alternate":
        most = min(most, max(n - class_token - distill_token, 0) // 2)
    return Partition(None, num_src, num_dst, k, most if r is None else min(r, most))


def _around(tokens: Tensor, protected: list[int], n: int) -> Tensor:
    """Lists of the other tokens, counted without the protected ones, with these appended."""
    if not protected:
        return tokens.to(torch.int32)
    # Protected are 0, or 1, or both: made on the device, as a copy from the host would wait for it.
    tokens = tokens.to(torch.int32)
    moved = tokens + len(protected) if 0 in protected else tokens + (tokens >= 1).to(torch.int32)
    rest = torch.arange(len(protected), dtype=torch.int32, device=tokens.device) + protected[0]
    return torch.cat([moved, rest.expand(tokens.shape[0], -1)], 1)


def _random(batch, n, r, protected, generator, device) -> Partition:
    free = n - len(protected)
    r = min(r, max(free - 1, 0))
    place = generator.device if generator is not None else device
    # Symbolic sizes and a generator of None are no signature of rand.
    given = {} if generator is None else {"generator": generator}
    drawn = torch.rand(batch, free, device=place, **given).to(device).argsort(1)
    return Partition(_around(drawn, protected, n), r, free - r, 2, r)


def _grid(name, n, r, grid, stride, protected, generator, device) -> Partition:
    h, w = _pair(name, "grid", grid, 1)
    if h * w != n - len(protected):
        raise ValueError(
            f"{name}: expected grid of {n - len(protected)} tokens (N without class and "
            f"distillation token), got {h} x {w}"
        )
    sy, sx = _pair(name, "stride", 2 if stride is None else stride, 1)
    rows, columns = h // sy, w // sx
    if generator is None:
        drawn = torch.zeros(rows, columns, dtype=torch.int64, device=device)
    else:
        shape = (rows, columns, 1)
        drawn = torch.randint(sy * sx, shape, generator=generator, device=generator.device)
        drawn = drawn[..., 0].to(device)
    y = torch.arange(rows, device=device)[:, None] * sy + drawn // sx
    x = torch.arange(columns, device=device) * sx + drawn % sx
    is_dst = torch.zeros(h * w, dtype=torch.uint8, device=device)
    is_dst.scatter_(0, (y * w + x).flatten(), 1)
    tokens = torch.sort(is_dst, stable=True).indices[None]  # both parts by position
    num_dst = rows * columns
    num_src = h * w - num_dst
    most = num_src if num_dst else 0
    tokens = _around(tokens, protected, n)
    return Partition(tokens, num_src, num_dst, 2, most if r is None else min(r, most))


def _pair(name: str, arg: str, value: Any, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, Integral) else value
    if (
        not isinstance(pair, tuple | list | torch.Size)
        or len(pair) != 2
        or any(isinstance(v, bool) or not isinstance(v, Integral) for v in pair)
    ):
        raise TypeError(f"{name}: expected {arg} to be a pair of ints, got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{name}: expected {arg} >= {least}, got {tuple(pair)}")
    return int(pair[0]), int(pair[1])
