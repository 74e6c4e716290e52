"""The relatives of softmax against plain PyTorch and the entmax package."""

from .bars import BARS
from .cases import SUITES, cases
from .ops import OPS, prepare

__all__ = ["BARS", "OPS", "SUITES", "cases", "prepare"]
