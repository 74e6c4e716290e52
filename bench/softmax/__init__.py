"""The softmax family: what is measured, against what, and the bars it must reach.

A family is a package with these five names; `bench/families.py` finds them.
"""

from .bars import BARS
from .cases import SUITES, cases
from .ops import OPS, prepare

__all__ = ["BARS", "OPS", "SUITES", "cases", "prepare"]
