"""The merge family: matching, merging, and the way there and back."""

from .bars import BARS
from .cases import SUITES, cases
from .ops import OPS, prepare

__all__ = ["BARS", "OPS", "SUITES", "cases", "prepare"]
