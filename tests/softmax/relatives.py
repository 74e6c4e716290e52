"""The relatives of softmax as the tests see them: our function, its definition computed exactly,
and the same formula in plain PyTorch at the accumulation dtype, the peer of the ratio rule.

The exact side is NumPy in a dtype wider than the accumulator and shares no code with the package.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastops
from fastops.softmax.relatives import reference
from tests.numerics import Error, accumulator, assert_ratio, exact, exact_dtype, measure
from tests.softmax.samples import randn

# ---- exactly, on (rows, n) ----------------------------------------------------------------------


def _power(u: np.ndarray, p: float) -> np.ndarray:
    return np.where(u > 0, np.where(u > 0, u, 1) ** p, 0)


def _below_max(s: np.ndarray) -> np.ndarray:
    return s - s.max(-1, keepdims=True)


def _softmax(s: np.ndarray) -> np.ndarray:
    e = np.exp(_below_max(s))
    return e / e.sum(-1, keepdims=True)


def _entmax(s: np.ndarray, alpha: float) -> np.ndarray:
    """By bisection, alpha > 1 where y falls with tau and alpha < 1 where it rises."""
    if alpha == 1:
        return _softmax(s)
    e = s.dtype.type(alpha) - 1
    z, least = _below_max(s) * e, -(s.dtype.type(s.shape[-1]) ** -e)
    low = np.full_like(z[:, :1], min(least, -1))
    high = np.full_like(low, max(least, -1))
    for _ in range(80 if s.dtype == np.longdouble else 64):
        tau = (low + high) / 2
        right = (_power(z - tau, 1 / e).sum(-1, keepdims=True) >= 1) == (e > 0)
        low, high = np.where(right, tau, low), np.where(right, high, tau)
    y = _power(z - (low if e > 0 else high), 1 / e)
    return y / y.sum(-1, keepdims=True)


def _pladis(s: np.ndarray, lam: float) -> np.ndarray:
    return (1 - s.dtype.type(lam)) * _softmax(s) + s.dtype.type(lam) * _entmax(s, 1.5)


def _softpick(s: np.ndarray) -> np.ndarray:
    c = np.maximum(s.max(-1, keepdims=True), 0)
    small = np.abs(s) < 1
    u = np.where(small, np.expm1(np.where(small, s, 0)) * np.exp(-c), np.exp(s - c) - np.exp(-c))
    return np.maximum(u, 0) / (np.abs(u).sum(-1, keepdims=True) + s.dtype.type("1e-8"))


def _stable(s: np.ndarray) -> np.ndarray:
    return np.where(s < 0, 1 / (1 - np.minimum(s, 0)), 1 + np.maximum(s, 0))


def _stablemax(s: np.ndarray) -> np.ndarray:
    return _stable(s) / _stable(s).sum(-1, keepdims=True)


def _log_stablemax(s: np.ndarray) -> np.ndarray:
    log = np.sign(s) * np.log1p(np.abs(s))
    return log - np.log(_stable(s).sum(-1, keepdims=True))


# ---- what a rounding costs an element, in units of the accumulator's precision ------------------


def _dense_size(s: np.ndarray, y: np.ndarray) -> np.ndarray:
    return y * (1 + np.abs(_below_max(s)))


def _entmax_size(s: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
    """What a rounding of a score, or of the threshold, moves: y's slope y^(2 - alpha). Where y is 0
    that of the least y there could be, for who is in the support is itself a matter of rounding."""
    if alpha <= 1:
        return y * (1 - np.log(np.maximum(y, np.finfo(y.dtype).tiny))) * (1 + 1 / alpha)
    e = alpha - 1
    w = np.maximum(y**e, 2.0**-23 if s.dtype == np.float64 else 2.0**-52)
    return y + w ** ((1 - e) / e) * (1 + np.minimum(np.abs(_below_max(s)), 1 / e))


def _pladis_size(s: np.ndarray, y: np.ndarray, lam: float) -> np.ndarray:
    soft, sparse = _softmax(s), _entmax(s, 1.5)
    return abs(1 - lam) * _dense_size(s, soft) + lam * _entmax_size(s, sparse, 1.5)


def _log_size(s: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 1 + np.abs(y) + np.log1p(np.abs(s))


# ---- the maps -----------------------------------------------------------------------------------


def alpha_rows(s: Tensor, alpha: float) -> Tensor:
    return torch.full((s.shape[0], 1), alpha, dtype=s.dtype, device=s.device)


def softpick_rows(s: Tensor, eps: float = 1e-8) -> Tensor:
    c = s.amax(-1, keepdim=True).clamp_min(0)
    away, near = (s - c).exp() - (-c).exp(), torch.expm1(s.clamp(-2, 2)) * (-c).exp()
    u = torch.where(s.abs() < 1, near, away)
    return u.relu() / (u.abs().sum(-1, keepdim=True) + eps)


def pladis_rows(s: Tensor, lam: float) -> Tensor:
    soft = torch.softmax(s, -1)
    return soft + lam * (reference._entmax(s, alpha_rows(s, 1.5)) - soft)


@dataclass(frozen=True)
class Map:
    ours: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    exactly: Callable[[np.ndarray], np.ndarray]  # of (rows, n) scores
    size: Callable[[np.ndarray, np.ndarray], np.ndarray]  # of scores and exact values
    peer: Callable[[Tensor], Tensor]
    alpha: float | None = None  # of a map with a threshold

    def run(self, x: Tensor, dim=-1, **score: Any) -> Tensor:
        return self.ours(x, dim=dim, **score)

    def exact(self, x: Tensor, dim=-1, **score: Any) -> Tensor:
        """The package's own float64 reference, any arguments."""
        return self.reference(x.double(), dim=dim, **score)

    def sides(self, rows: Tensor) -> tuple[np.ndarray, Tensor, np.ndarray]:
        """(exact values, the peer's, sizes) of (rows, n) scores."""
        acc = accumulator(rows.dtype)
        s = exact(rows, exact_dtype(acc))
        y = self.exactly(s)
        return y, self.peer(rows.to(acc)).to(rows.dtype), self.size(s, y)

    def check(self, got: Tensor, x: Tensor) -> None:
        """The ratio rule, rows last and no special arguments."""
        assert got.dtype == x.dtype and got.shape == x.shape
        rows = x.reshape(-1, x.shape[-1])
        y, peer, size = self.sides(rows)
        assert_ratio(got.reshape(rows.shape), y, peer, size=size, luck=luck(self, x.dtype))


def entmax(alpha: float, ours: Callable[..., Tensor] | None = None) -> Map:
    return Map(
        ours or functools.partial(fastops.entmax, alpha=alpha),
        functools.partial(reference.entmax_reference, alpha=alpha),
        lambda s: _entmax(s, alpha),
        lambda s, y: _entmax_size(s, y, alpha),
        lambda s: reference._entmax(s, alpha_rows(s, alpha)),
        alpha,
    )


MAPS = {
    "sparsemax": entmax(2.0, fastops.sparsemax),
    "entmax15": entmax(1.5, fastops.entmax15),
    **{f"entmax{alpha}": entmax(alpha) for alpha in (0.5, 1.0, 1.05, 1.3, 1.75)},
    "pladis": Map(
        functools.partial(fastops.pladis_softmax, lam=1.7),
        functools.partial(reference.pladis_softmax_reference, lam=1.7),
        lambda s: _pladis(s, 1.7),
        lambda s, y: _pladis_size(s, y, 1.7),
        lambda s: pladis_rows(s, 1.7),
        1.5,
    ),
    "softpick": Map(
        fastops.softpick, reference.softpick_reference, _softpick, _dense_size, softpick_rows
    ),
    "stablemax": Map(
        fastops.stablemax,
        reference.stablemax_reference,
        _stablemax,
        lambda s, y: y * (1 + np.log1p(np.abs(s))),
        lambda s: torch.softmax(reference._stable(s), -1),
    ),
    "log_stablemax": Map(
        fastops.log_stablemax,
        reference.log_stablemax_reference,
        _log_stablemax,
        _log_size,
        lambda s: torch.log_softmax(reference._stable(s), -1),
    ),
}


@functools.cache
def luck(map_: Map, dtype: torch.dtype) -> Error:
    """The peer's error on samples large enough to leave nothing to chance."""
    worst = Error()
    for n, spread in ((8, 2), (64, 2), (512, 2), (300, 1000)):  # the last: rows of few values
        y, peer, size = map_.sides(randn(100, n, spread=spread).to(dtype))
        worst = worst.worse(measure(peer, y, size))
    return worst
