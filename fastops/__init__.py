"""Hand-written CUDA and CPU kernels as torch ops.

softmax, log_softmax and logsumexp with masks, bias, lengths, causal masks and temperatures
fused, and their relatives: top-k, sparsemax, entmax, softpick, StableMax, PLADIS; products with
N:M sparse weights; token matching, merging and pruning; block-sparse attention; of torch tensors,
NumPy and CuPy arrays. The ops behind them are ``torch.ops.fastops.*``; ``python -m fastops.info``
says what works here, and why the rest does not.
"""

from . import nn
from .attention import BlockMask, block_sparse_attention
from .merge import (
    MergePlan,
    match_tokens,
    merge_tokens,
    prune_plan,
    prune_tokens,
    unmerge_tokens,
)
from .nm import NMWeight, nm_compress, nm_linear, nm_mask, nm_prune, sparsify_
from .softmax import (
    entmax,
    entmax15,
    entmax15_loss,
    entmax_loss,
    log_softmax,
    log_stablemax,
    logsumexp,
    pladis_softmax,
    softmax,
    softmax_topk,
    softpick,
    sparsemax,
    sparsemax_loss,
    stablemax,
)

__version__ = "0.1.0"  # as in pyproject.toml; a build in place has no metadata to read it from
__all__ = [
    "BlockMask",
    "MergePlan",
    "NMWeight",
    "__version__",
    "block_sparse_attention",
    "entmax",
    "entmax15",
    "entmax15_loss",
    "entmax_loss",
    "log_softmax",
    "log_stablemax",
    "logsumexp",
    "match_tokens",
    "merge_tokens",
    "nm_compress",
    "nm_linear",
    "nm_mask",
    "nm_prune",
    "nn",
    "pladis_softmax",
    "prune_plan",
    "prune_tokens",
    "softmax",
    "softmax_topk",
    "softpick",
    "sparsemax",
    "sparsemax_loss",
    "sparsify_",
    "stablemax",
    "unmerge_tokens",
]
