"""Hand-written CUDA and CPU kernels as torch ops.

softmax, log_softmax and logsumexp with masks, bias, lengths, causal masks and temperatures fused;
of torch tensors, NumPy and CuPy arrays; products with N:M sparse weights. The ops behind them are
``torch.ops.fastops.*``; ``python -m fastops.info`` says what works here, and why the rest does not.
"""

from . import nn
from .nm import NMWeight, nm_compress, nm_linear, nm_mask, nm_prune, sparsify_
from .softmax import log_softmax, logsumexp, softmax

__version__ = "0.1.0"  # as in pyproject.toml; a build in place has no metadata to read it from
__all__ = [
    "NMWeight",
    "__version__",
    "log_softmax",
    "logsumexp",
    "nm_compress",
    "nm_linear",
    "nm_mask",
    "nm_prune",
    "nn",
    "softmax",
    "sparsify_",
]
