"""The relatives of softmax against plain PyTorch and the entmax package."""

from .bars import BARS
from .cases import SUITES, cases
from .ops import OPS, prepare

TESTS = "softmax"  # where the family's tests are
__all__ = ["BARS", "OPS", "SUITES", "TESTS", "cases", "prepare"]
