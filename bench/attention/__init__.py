"""The attention family: attention over a list of blocks, forward, and forward with backward."""

from .bars import BARS
from .cases import SUITES, cases
from .ops import OPS, prepare

__all__ = ["BARS", "OPS", "SUITES", "cases", "prepare"]
