"""The N:M family: products with sparse weights against dense F.linear."""

from .bars import BARS
from .cases import SUITES, cases
from .ops import OPS, prepare

__all__ = ["BARS", "OPS", "SUITES", "cases", "prepare"]
