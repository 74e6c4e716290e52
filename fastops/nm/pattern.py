"""Patterns "N:M", and the sizes that follow from them."""

import re
from typing import Any, NamedTuple

MOST_GROUP = 32
_TEXT = re.compile(r"(\d{1,3}):(\d{1,3})")


class Pattern(NamedTuple):
    """At most n of each m consecutive in_features are not zero."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def index_bits(self) -> int:
        """Bits of a stored index: 1, 2, 4 or 8, so that none straddles a byte."""
        return 1 if self.m <= 2 else 2 if self.m <= 4 else 4 if self.m <= 16 else 8

    def kept(self, in_features: int) -> int:
        """Kept elements of a row."""
        return in_features // self.m * self.n

    def index_bytes(self, in_features: int) -> int:
        """Bytes of a row of indices."""
        return (self.kept(in_features) * self.index_bits + 7) // 8


def parse(name: str, pattern: Any) -> Pattern:
    """The pattern that "N:M" (or a Pattern) says: TypeError or ValueError where it is none."""
    if isinstance(pattern, Pattern):
        pattern = str(pattern)
    if not isinstance(pattern, str):
        raise TypeError(
            f'{name}: expected pattern to be a string "N:M", got {type(pattern).__name__}'
        )
    match = _TEXT.fullmatch(pattern)
    if match is None:
        raise ValueError(f'{name}: expected pattern "N:M", got {pattern!r}')
    n, m = int(match[1]), int(match[2])
    if not 1 <= n <= m <= MOST_GROUP:
        raise ValueError(
            f"{name}: expected pattern N:M with 1 <= N <= M <= {MOST_GROUP}, got {pattern!r}"
        )
    return Pattern(n, m)


def divides(name: str, pattern: Pattern, in_features: int) -> None:
    if in_features % pattern.m:
        raise ValueError(
            f"{name}: expected in_features divisible by {pattern.m} for pattern {pattern}, "
            f"got {in_features}"
        )
