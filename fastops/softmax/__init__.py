"""The softmax family: softmax, log_softmax and logsumexp with masks, bias, lengths and scale."""

from . import ops  # registers the ops' fake, autograd, autocast and vmap rules
from .functional import log_softmax, logsumexp, softmax

__all__ = ["log_softmax", "logsumexp", "ops", "softmax"]
