"""Hand-written CUDA and CPU kernels as torch ops."""

from .softmax import log_softmax, logsumexp, softmax

__version__ = "0.1.0"
__all__ = ["__version__", "log_softmax", "logsumexp", "softmax"]
