"""Hand-written CUDA and CPU kernels as torch ops.

softmax, log_softmax and logsumexp with masks, bias, lengths, causal masks and temperatures
fused; products with N:M sparse weights; token matching, merging and pruning; of torch tensors,
NumPy and CuPy arrays. The ops behind them are ``torch.ops.fastops.*``; ``python -m fastops.info``
says what works here, and why the rest does not.
"""

from . import nn
from .merge import (
    MergePlan,
    match_tokens,
    merge_tokens,
    prune_plan,
    prune_tokens,
    unmerge_tokens,
)
from .nm import NMWeight, nm_compress, nm_linear, nm_mask, nm_prune, sparsify_
from .softmax import log_softmax, logsumexp, softmax

__version__ = "0.1.0"  # as in pyproject.toml; a build in place has no metadata to read it from
__all__ = [
    "MergePlan",
    "NMWeight",
    "__version__",
    "log_softmax",
    "logsumexp",
    "match_tokens",
    "merge_tokens",
    "nm_compress",
    "nm_linear",
    "nm_mask",
    "nm_prune",
    "nn",
    "prune_plan",
    "prune_tokens",
    "softmax",
    "sparsify_",
    "unmerge_tokens",
]
