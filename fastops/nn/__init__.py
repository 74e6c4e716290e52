"""Modules over the kernels."""

from .block_sparse_attention import BlockSparseAttention
from .nm_linear import NMLinear

__all__ = ["BlockSparseAttention", "NMLinear"]
