"""The softmax family: softmax, log_softmax and logsumexp with masks, bias, lengths and scale."""

from .functional import log_softmax, logsumexp, softmax

__all__ = ["log_softmax", "logsumexp", "softmax"]
