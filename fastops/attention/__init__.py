"""The attention family: attention over a list of blocks."""

from . import ops  # registers the ops' fake, autograd, autocast and vmap rules
from ._forms import tile_order
from .block_mask import BlockMask
from .functional import block_sparse_attention

__all__ = ["BlockMask", "block_sparse_attention", "ops", "tile_order"]
