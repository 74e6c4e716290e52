"""The relatives of softmax: top-k, sparsemax and entmax with their losses, softpick, StableMax and
the mix of PLADIS."""

from . import ops  # registers the ops' fake, autograd and vmap rules
from .functional import (
    entmax,
    entmax15,
    log_stablemax,
    pladis_softmax,
    softmax_topk,
    softpick,
    sparsemax,
    stablemax,
)
from .losses import entmax15_loss, entmax_loss, sparsemax_loss

__all__ = [
    "entmax",
    "entmax15",
    "entmax15_loss",
    "entmax_loss",
    "log_stablemax",
    "ops",
    "pladis_softmax",
    "softmax_topk",
    "softpick",
    "sparsemax",
    "sparsemax_loss",
    "stablemax",
]
