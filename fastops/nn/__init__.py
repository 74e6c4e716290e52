"""Modules over the kernels."""

from .nm_linear import NMLinear

__all__ = ["NMLinear"]
