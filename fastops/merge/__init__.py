"""The merge family: matching, merging, unmerging and pruning tokens."""

from . import ops  # registers the ops' fake, autograd and vmap rules
from .functional import match_tokens, merge_tokens, unmerge_tokens
from .plan import MergePlan
from .prune import prune_plan, prune_tokens

__all__ = [
    "MergePlan",
    "match_tokens",
    "merge_tokens",
    "ops",
    "prune_plan",
    "prune_tokens",
    "unmerge_tokens",
]
