"""Hand-written CUDA and CPU kernels as torch ops."""

from .softmax import log_softmax, logsumexp, softmax

__version__ = "0.1.0"  # as in pyproject.toml; a build in place has no metadata to read it from
__all__ = ["__version__", "log_softmax", "logsumexp", "softmax"]
