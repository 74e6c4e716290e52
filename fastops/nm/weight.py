"""NMWeight: one N:M sparse weight, the same on every device."""

from typing import Any

import torch
from torch import Tensor

from .. import _checks as check
from .. import _load
from . import pattern as patterns
from .ops import columns
from .pattern import Pattern

__all__ = ["NMWeight"]

NONE_BAD = 2**63 - 1
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def is_weight_dtype(name: str, arg: str, t: Tensor) -> None:
    check.is_dtype(name, arg, t, *DTYPES)


class NMWeight:
    """An N:M sparse weight of ``[out_features, in_features]``: its kept values and where they are.

    Made by :func:`fastops.nm_compress`. The stored form is the same on every device and documented
    in docs/nm.md; what kernels read instead is derived at first use and never saved.

    Args:
        values: ``[out_features, kept]``, float32, float16 or bfloat16, ``kept = in_features / M *
            N``; the kept elements of each row, group by group. May require grad.
        indices: ``[out_features, bytes]`` uint8, contiguous; the place of each kept element in its
            group, strictly rising within a group, packed to 1, 2, 4 or 8 bits.
        pattern: ``"N:M"``, 1 <= N <= M <= 32.
        in_features: divisible by M.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: wrong shapes, or indices that do not rise within a group. On CUDA this check
            waits for the device.
    """

    def __init__(
        self,
        values: Tensor,
        indices: Tensor,
        pattern: str | Pattern,
        in_features: int,
        *,
        _checked: bool = False,
    ):
        self.values = values
        self.indices = indices
        self._pattern = pattern if _checked else patterns.parse("fastops.NMWeight", pattern)
        self.in_features = in_features
        if not _checked:
            self._validate("fastops.NMWeight")

    def _validate(self, name: str) -> None:
        values, indices, pattern = self.values, self.indices, self._pattern
        check.is_tensor(name, "values", values)
        check.is_tensor(name, "indices", indices)
        is_weight_dtype(name, "values", values)
        check.is_dtype(name, "indices", indices, torch.uint8)
        if isinstance(self.in_features, bool) or not isinstance(self.in_features, int):
            raise TypeError(
                f"{name}: expected in_features to be an int, got {type(self.in_features).__name__}"
            )
        patterns.divides(name, pattern, self.in_features)
        kept, row = pattern.kept(self.in_features), pattern.index_bytes(self.in_features)
        if values.ndim != 2 or values.shape[1] != kept:
            raise ValueError(
                f"{name}: expected values of shape [out_features, {kept}] for {pattern} of "
                f"{self.in_features}, got {tuple(values.shape)}"
            )
        if tuple(indices.shape) != (values.shape[0], row):
            raise ValueError(
                f"{name}: expected indices of shape [{values.shape[0]}, {row}], got "
                f"{tuple(indices.shape)}"
            )
        if indices.device != values.device:
            raise ValueError(
                f"{name}: expected indices on {values.device} as values are, got {indices.device}"
            )
        if not check.is_plain(indices):
            return
        self.indices = indices.contiguous()
        _load.require(name, indices.device)
        bad = int(_load.op("nm_check")(self.indices, *pattern, self.in_features))
        if bad != NONE_BAD:
            row, group = divmod(bad, self.in_features // pattern.m)
            raise ValueError(
                f"{name}: expected indices that rise strictly below {pattern.m} within each group, "
                f"got others in row {row}, group {group}"
            )

    # ---- what it is --------------------------------------------------------------------------

    @property
    def pattern(self) -> str:
        """``"N:M"``."""
        return str(self._pattern)

    @property
    def shape(self) -> torch.Size:
        """``[out_features, in_features]`` of the dense weight it stands for."""
        return torch.Size((self.values.shape[0], self.in_features))

    @property
    def out_features(self) -> int:
        return self.values.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    def __repr__(self) -> str:
        grad = ", requires_grad=True" if self.values.requires_grad else ""
        return (
            f"NMWeight({self.pattern}, shape={tuple(self.shape)}, dtype={self.dtype}, "
            f"device='{self.device}'{grad})"
        )

    # ---- other forms -------------------------------------------------------------------------

    def dense(self) -> Tensor:
        """The dense weight; differentiable with respect to ``values``."""
        _load.require("fastops.NMWeight.dense", self.device)
        values = self.values if self.values.is_contiguous() else self.values.contiguous()
        return _load.op("nm_decompress")(values, self.indices, *self._pattern, self.in_features)

    def columns(self) -> Tensor:
        """The column of each kept element: int64 of ``[out_features, kept]``."""
        return columns(self.indices, *self._pattern, self.values.shape[1])

    def to(self, *args: Any, **kwargs: Any) -> "NMWeight":
        """Another device or floating dtype, as :meth:`torch.Tensor.to`; never densifies."""
        values = self.values.to(*args, **kwargs)
        is_weight_dtype("fastops.NMWeight.to", "the new values", values)
        indices = self.indices.to(values.device)
        if values is self.values and indices is self.indices:
            return self
        return NMWeight(values, indices, self._pattern, self.in_features, _checked=True)

    def detach(self) -> "NMWeight":
        """The same weight, its values cut off from autograd."""
        return NMWeight(
            self.values.detach(), self.indices, self._pattern, self.in_features, _checked=True
        )

    def requires_grad_(self, requires_grad: bool = True) -> "NMWeight":
        self.values.requires_grad_(requires_grad)
        return self

    # ---- saving ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors that load under ``weights_only=True``; :meth:`from_state_dict` checks."""
        shape = torch.tensor([*self._pattern, self.in_features])
        return {"values": self.values.detach(), "indices": self.indices, "pattern": shape}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "NMWeight":
        """The weight that :meth:`state_dict` described.

        Raises:
            KeyError, TypeError, ValueError: it is not one, or its indices are broken.
        """
        n, m, in_features = (int(v) for v in state["pattern"].tolist())
        return cls(state["values"], state["indices"], f"{n}:{m}", in_features)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "values": self.values,
            "indices": self.indices,
            "pattern": self.pattern,
            "in_features": self.in_features,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


torch.serialization.add_safe_globals([NMWeight])
