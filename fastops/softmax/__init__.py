"""The softmax family: softmax, log_softmax and logsumexp with masks, bias, lengths and scale, and
their relatives: top-k, sparsemax, entmax, softpick, StableMax, PLADIS."""

from . import ops  # registers the ops' fake, autograd, autocast and vmap rules
from .functional import log_softmax, logsumexp, softmax
from .relatives import (
    entmax,
    entmax15,
    entmax15_loss,
    entmax_loss,
    log_stablemax,
    pladis_softmax,
    softmax_topk,
    softpick,
    sparsemax,
    sparsemax_loss,
    stablemax,
)

__all__ = [
    "entmax",
    "entmax15",
    "entmax15_loss",
    "entmax_loss",
    "log_softmax",
    "log_stablemax",
    "logsumexp",
    "ops",
    "pladis_softmax",
    "softmax",
    "softmax_topk",
    "softpick",
    "sparsemax",
    "sparsemax_loss",
    "stablemax",
]
