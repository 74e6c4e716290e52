"""torch's semi-structured (2:4) weights: cuSPARSELt and CUTLASS, called as torch offers them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.backends.cusparselt
import torch.nn.functional as F
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT as CuSparseLt
from torch.sparse import SparseSemiStructuredTensorCUTLASS as Cutlass

KINDS = {"cusparselt": CuSparseLt, "cutlass": Cutlass}
DTYPES = (torch.float16, torch.bfloat16)


def why_missing(backend: str, device: str) -> str:
    if device != "cuda":
        return "runs on a GPU only"
    if backend == "cusparselt" and not torch.backends.cusparselt.is_available():
        return f"torch {torch.__version__} is built without cuSPARSELt"
    return ""


def serves(n: int, m: int, dtype: torch.dtype) -> bool:
    """Whether every weight of N:M is one of 2:4."""
    return n <= 2 and m % 4 == 0 and dtype in DTYPES


def linear(backend: str, x: torch.Tensor, w: torch.Tensor) -> Callable[[], torch.Tensor]:
    """F.linear of a pruned weight, compressed beforehand; cuSPARSELt with the fastest of its
    algorithms for the shape."""
    sparse = KINDS[backend].from_dense(w)
    if backend == "cusparselt":
        rows = x if x.shape[0] % 8 == 0 else F.pad(x, (0, 0, 0, -x.shape[0] % 8))
        sparse.alg_id_cusparselt = torch._cslt_sparse_mm_search(sparse.packed, rows.t())
    return lambda: F.linear(x, sparse)
