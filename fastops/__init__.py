"""Hand-written CUDA and CPU kernels as torch ops.

softmax, log_softmax and logsumexp with masks, bias, lengths, causal masks and temperatures fused;
of torch tensors, NumPy and CuPy arrays. The ops behind them are
``torch.ops.fastops.*``; ``python -m fastops.info`` says what works here, and why the rest does not.
"""

from .softmax import log_softmax, logsumexp, softmax

__version__ = "0.1.0"  # as in pyproject.toml; a build in place has no metadata to read it from
__all__ = ["__version__", "log_softmax", "logsumexp", "softmax"]
