"""N:M sparse weights: prune, compress, multiply."""

from . import ops  # registers the ops' fake, autograd and autocast rules
from .functional import nm_compress, nm_linear, nm_mask, nm_prune
from .packing import clear_packings
from .sparsify import Sparsified, sparsify_
from .weight import NMWeight

__all__ = [
    "NMWeight",
    "Sparsified",
    "clear_packings",
    "nm_compress",
    "nm_linear",
    "nm_mask",
    "nm_prune",
    "ops",
    "sparsify_",
]
