"""What the softmax ops must compute, written twice: exactly, and as a user of plain PyTorch would.

The exact side is NumPy in a dtype wider than the accumulator, follows the definitions by hand and
shares no code with the package. The peer is torch.softmax and friends in the accumulation dtype on
scores that have been scaled, biased and masked, rounded once at the end: for half inputs a
stricter peer than a computation in half. Everything is compared as a (rows, n) matrix, the
reduced dims last, in row-major order.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import fastops  # noqa: F401  (registers torch.ops.fastops)
from tests.numerics import (
    EMULATED,
    Error,
    accumulator,
    assert_ratio,
    exact,
    exact_dtype,
    measure,
    same_bits,
)

KINDS = ("softmax", "log_softmax")
ALGORITHMS = {"auto": 0, "online": 1, "two_pass": 2, "three_pass": 3}
if EMULATED:  # the CUDA kernels take the argument and know one way
    ALGORITHMS = {"auto": 0}
Dims = int | tuple[int, ...]


def op(name: str) -> Callable[..., Any]:
    return getattr(torch.ops.fastops, name)


class ExactRows(NamedTuple):
    scores: np.ndarray  # (rows, n), -inf where excluded
    terms: np.ndarray  # what a score's finite terms sum to without their signs
    maximum: np.ndarray  # (rows, 1)
    exps: np.ndarray  # exp(scores - maximum); of the scores themselves where all are -inf
    total: np.ndarray  # the sum of exps


@dataclass(kw_only=True, repr=False)
class Problem:
    """The arguments of a softmax op, in the op's own terms."""

    x: Tensor
    dim: Dims = -1
    mask: Tensor | None = None
    bias: Tensor | None = None
    lengths: Tensor | None = None
    causal: int = 0  # 1 upper_left, 2 lower_right
    scale: float = 1.0
    row_scale: Tensor | None = None
    zero_masked_rows: bool = False
    dtype: torch.dtype | None = None

    def __repr__(self) -> str:
        """Short enough for the report of a failure."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = {name: _show(value) for name, value in given.items() if value is not None}
        return f"Problem({', '.join(f'{name}={value}' for name, value in shown.items())})"

    # ---- the op's arguments

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.dim,) if isinstance(self.dim, int) else tuple(self.dim)

    @property
    def out_dtype(self) -> torch.dtype:
        return self.dtype or self.x.dtype

    @property
    def acc(self) -> torch.dtype:
        return accumulator(self.x.dtype, self.out_dtype)

    def validity_args(self) -> dict[str, Any]:
        return {
            "mask": self.mask,
            "lengths": self.lengths,
            "causal": self.causal,
            "scale": self.scale,
            "row_scale": self.row_scale,
        }

    def score_args(self) -> dict[str, Any]:
        return {**self.validity_args(), "bias": self.bias}

    def forward_args(self) -> dict[str, Any]:
        return {
            **self.score_args(),
            "zero_masked_rows": self.zero_masked_rows,
            "dtype": self.dtype,
        }

    # ---- (rows, n) views of the operands

    def rows(self, t: Tensor) -> Tensor:
        """A tensor of x's shape, or one that broadcasts to it, as (rows, n)."""
        t = t.expand(self.x.shape)
        if t.ndim == 0:
            return t.reshape(1, 1)
        reduced = sorted(d % t.ndim for d in self.dims)
        kept = [d for d in range(t.ndim) if d not in reduced]
        n = math.prod(t.shape[d] for d in reduced)
        return t.permute(kept + reduced).reshape(math.prod(t.shape[d] for d in kept), n)

    def per_row(self, t: Tensor) -> Tensor:
        """One value per row, as (rows, 1)."""
        rank = self.x.ndim
        if rank == 0:
            return t.reshape(1, 1)
        reduced = {d % rank for d in self.dims}
        if t.ndim == rank:
            t = t.squeeze(tuple(reduced))
        shape = [self.x.shape[d] for d in range(rank) if d not in reduced]
        return t.expand(shape).reshape(-1, 1)

    def takes_part(self) -> Tensor:
        """Which elements do, as a boolean (rows, n)."""
        device = self.x.device
        part = torch.ones_like(self.rows(self.x), dtype=torch.bool)
        if self.mask is not None:
            part &= self.rows(self.mask)
        position = torch.arange(part.shape[1], device=device)
        if self.lengths is not None:
            part &= position < self.per_row(self.lengths)
        if self.causal:
            queries, keys = self.x.shape[-2:]
            offset = keys - queries if self.causal == 2 else 0
            part &= position <= self.per_row(torch.arange(queries, device=device)) + offset
        return part

    # ---- exactly

    def __setattr__(self, name: str, value: object) -> None:
        self.__dict__.pop("_exact_rows", None)
        super().__setattr__(name, value)

    @np.errstate(all="ignore")
    def exact_rows(self) -> "ExactRows":
        """The exact side's intermediate results, computed once."""
        if "_exact_rows" not in self.__dict__:
            dtype = exact_dtype(self.acc)
            s = exact(self.rows(self.x), dtype) * dtype(self.scale)
            if self.row_scale is not None:
                s = s * exact(self.per_row(self.row_scale), dtype)
            terms = _finite(s)
            if self.bias is not None:
                bias = exact(self.rows(self.bias), dtype)
                s, terms = s + bias, terms + _finite(bias)
            s = np.where(self.takes_part().cpu().numpy(), s, -np.inf)
            m = s.max(-1, keepdims=True, initial=-np.inf)  # NaN if any score is
            exps = np.exp(s - np.where(m == -np.inf, 0, m))
            self.__dict__["_exact_rows"] = ExactRows(s, terms, m, exps, exps.sum(-1, keepdims=True))
        return self.__dict__["_exact_rows"]

    @np.errstate(all="ignore")
    def exact(self, kind: str) -> np.ndarray:
        """softmax or log_softmax (rows, n), or logsumexp (rows, 1), before rounding."""
        s, _, m, exps, total = self.exact_rows()  # total is NaN where the maximum is NaN or +inf
        empty = m == -np.inf
        if kind == "logsumexp":
            return np.where(empty | (m == np.inf), m, m + np.log(total))
        if kind == "softmax":
            out, nothing = exps / total, 0.0
        else:
            out, nothing = (s - m) - np.log(total), -np.inf
        out = np.where(np.isnan(total), np.nan, out)
        return np.where(empty, nothing if self.zero_masked_rows else np.nan, out)

    @np.errstate(all="ignore")
    def size(self, kind: str) -> np.ndarray:
        """What roundings in the accumulator cost an output, in units of its precision. Scores that
        are given are only subtracted from one another; those that are computed are rounded, and
        their terms may cancel."""
        s, terms, m, exps, total = self.exact_rows()
        reference = _finite(self.exact(kind))
        computed = self.scale != 1 or self.row_scale is not None or self.bias is not None
        inherited = (_finite(exps / total) * terms).sum(-1, keepdims=True) if computed else 0
        if kind == "logsumexp":
            return 1 + reference + _finite(m) + inherited
        cost = 1 + _finite(s - m) + (terms + inherited if computed else 0)
        return reference * cost if kind == "softmax" else reference + cost

    # ---- as plain PyTorch does

    def peer(self, kind: str) -> Tensor:
        s = self.rows(self.x).to(self.acc)
        if self.scale != 1:
            s = s * self.scale
        if self.row_scale is not None:
            s = s * self.per_row(self.row_scale)
        if self.bias is not None:
            s = s + self.rows(self.bias).to(self.acc)
        s = s.masked_fill(~self.takes_part(), -math.inf)
        if kind == "logsumexp":
            return torch.logsumexp(s, -1, keepdim=True)
        return getattr(torch, kind)(s, -1).to(self.out_dtype)

    # ---- judging

    def check(self, kind: str, got: Tensor) -> None:
        """The ratio rule for an output of x's shape."""
        assert got.shape == self.x.shape
        assert got.dtype == self.out_dtype
        self._judge(kind, self.rows(got), self.out_dtype)

    def check_lse(self, lse: Tensor, dtype: torch.dtype | None = None) -> None:
        """The ratio rule for a logsumexp with the reduced dims removed or kept."""
        assert lse.dtype == (dtype or self.acc)
        self._judge("logsumexp", self.per_row(lse), lse.dtype)

    def _judge(self, kind: str, got: Tensor, dtype: torch.dtype) -> None:
        assert_ratio(
            got,
            self.exact(kind),
            self.peer(kind).to(dtype),
            size=self.size(kind),
            luck=usual_error(kind, self.x.dtype, dtype),
        )

    def check_all(self, kind: str, **extra: Any) -> tuple[Tensor, Tensor]:
        """Runs the op with its lse, judges both and returns them; and without, which may be
        another kernel: half outputs can do with a coarser exp, an lse cannot."""
        args = self.forward_args() | extra
        out, lse = op(f"{kind}_lse")(self.x, self.dims, **args)
        self.check(kind, out)
        self.check_lse(lse)
        alone = op(kind)(self.x, self.dims, **args)
        if not same_bits(alone, out):
            self.check(kind, alone)
        return out, lse

    def check_kinds(self, **extra: Any) -> None:
        for kind in KINDS:
            self.check_all(kind, **extra)

    def replace(self, **changes: Any) -> "Problem":
        return replace(self, **changes)


def _show(value: object) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    first = ", ".join(f"{v:g}" for v in value.flatten()[:6].tolist())
    more = ", ..." if value.numel() > 6 else ""
    return (
        f"<{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} strides {value.stride()} "
        f"offset {value.storage_offset()}: {first}{more}>"
    )


def _finite(a: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(a), np.abs(a), 0)


@functools.cache
def usual_error(kind: str, x_dtype: torch.dtype, out_dtype: torch.dtype) -> Error:
    """The peer's error on a sample large enough to leave nothing to chance."""
    x = torch.randn(100, 1000, generator=torch.Generator().manual_seed(0)).to(x_dtype) * 3
    problem = Problem(x=x, dtype=out_dtype)
    return measure(problem.peer(kind).to(out_dtype), problem.exact(kind), problem.size(kind))
