"""MergePlan: where every token goes, as integer tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks as check
from .. import _load
from .reference import source_reference

_compose = _load.op("plan_compose")


class MergePlan(NamedTuple):
    """Which output row each token goes to, for any number of tensors.

    A plan is what :func:`fastops.match_tokens` and :func:`fastops.prune_plan` make and
    :func:`fastops.merge_tokens` and :func:`fastops.unmerge_tokens` follow. It is a named tuple of
    int32 tensors on one device, so it goes through ``torch.compile``, ``vmap`` and pytrees.
    Kernels compare every index with its bounds: what is out of bounds is skipped, never followed.
    To edit a plan, edit a map and make a new plan of it with :meth:`from_map`.
    """

    map: Tensor
    """[B, N]: the output row of each token; -1: none (padding, pruned tokens)."""
    offsets: Tensor
    """[B, M + 1]: row o has the tokens ``perm[offsets[o]:offsets[o + 1]]``."""
    perm: Tensor
    """[B, N]: tokens by row, ascending within each; -1 past the last row."""
    lengths: Tensor
    """[B]: rows in use; M for each sample unless there is a threshold or padding."""

    @property
    def num_tokens(self) -> int:
        """N, tokens that go in."""
        return self.map.shape[-1]

    @property
    def num_out(self) -> int:
        """M, rows that come out (with a threshold or padding: at most)."""
        return self.offsets.shape[-1] - 1

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 [B + 1]: cumulative lengths, as variable-length attention takes them."""
        return torch.nn.functional.pad(self.lengths.cumsum(-1), (1, 0)).to(torch.int32)

    @property
    def out_padding_mask(self) -> Tensor:
        """bool [B, M], True for rows past a sample's length: the next layer's padding_mask."""
        return torch.arange(self.num_out, device=self.map.device) >= self.lengths[..., None]

    def then(self, other: MergePlan) -> MergePlan:
        """This plan followed by `other`, a plan for its output rows: one plan of both.

        Raises:
            ValueError: `other` is for another number of samples or tokens, or another device.
        """
        name = "fastops.MergePlan.then"
        if not isinstance(other, MergePlan):
            raise TypeError(f"{name}: expected a MergePlan, got {type(other).__name__}")
        if other.map.dtype != torch.int32:
            raise TypeError(f"{name}: expected other.map of dtype int32, got {other.map.dtype}")
        if other.map.shape != (*self.map.shape[:-1], self.num_out):
            raise ValueError(
                f"{name}: expected other.map of shape {(*self.map.shape[:-1], self.num_out)} "
                f"(the rows of this plan), got {tuple(other.map.shape)}"
            )
        if other.map.device != self.map.device:
            raise ValueError(
                f"{name}: expected a plan on {self.map.device}, got {other.map.device}"
            )
        rows = _compose(self.map, other.map, other.num_out)
        return MergePlan(*rows, other.lengths)

    def source(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[B, M, N]: 1 where token n went to row m; for visualisation (N x M memory)."""
        return source_reference(self.map, self.num_out, dtype)

    @classmethod
    def identity(cls, batch: int, n: int, device: torch.device | str = "cpu") -> MergePlan:
        """The plan that leaves everything in place: where to begin composing."""
        tokens = torch.arange(n, dtype=torch.int32, device=device).expand(batch, n)
        return cls.from_map(tokens, n)

    @classmethod
    def from_map(cls, map: Tensor, num_out: int, lengths: Tensor | None = None) -> MergePlan:
        """A plan of any map: int [B, N] of rows in [0, num_out), whatever else is -1.

        Raises:
            TypeError, ValueError: `map` or `lengths` of another dtype, shape or device, or
                num_out no int >= 0.
        """
        name = "fastops.MergePlan.from_map"
        if not isinstance(map, Tensor) or map.is_floating_point() or map.dtype == torch.bool:
            raise TypeError(f"{name}: expected map to be a tensor of integers, got {map!r}")
        if map.ndim != 2:
            raise ValueError(f"{name}: expected map of shape [B, N], got {tuple(map.shape)}")
        if not isinstance(num_out, torch.SymInt):
            num_out = check.integer(name, "num_out to be an int", num_out)
        if num_out < 0:
            raise ValueError(f"{name}: expected num_out >= 0, got {num_out}")
        if lengths is not None:
            check.is_tensor(name, "lengths", lengths)
            check.is_dtype(name, "lengths", lengths, torch.int32)
            check.same_device(name, "lengths", lengths, map)
            if lengths.shape != map.shape[:1]:
                raise ValueError(
                    f"{name}: expected lengths of shape {tuple(map.shape[:1])}, got "
                    f"{tuple(lengths.shape)}"
                )
        if map.dtype != torch.int32:  # before what is beyond int32 wraps
            map = map.where((map >= 0) & (map < num_out), -1).to(torch.int32)
        rows = _compose(map.contiguous(), None, num_out)
        if lengths is None:
            lengths = torch.full(map.shape[:1], num_out, dtype=torch.int32, device=map.device)
        return cls(*rows, lengths)
