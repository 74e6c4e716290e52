"""What a product with an N:M weight cannot do without: the stored weight, x and y once; the
products of the dense matrix at the rate of the unit that does them."""

from __future__ import annotations

from math import ceil, log2

from ..core.case import DTYPES, Case
from ..core.roofline import Work


def unit(case: Case) -> str:
    """Sparse tensor cores where the pattern satisfies 2:4, else dense ones; fp32 is exact."""
    n, m = map(int, case.variant.split(":"))
    if case.dtype == "fp32":
        return "fp32"
    return "sparse16" if n <= 2 and m % 4 == 0 else "tensor16"


def work(case: Case) -> Work:
    rows, features, out = case.shape
    n, m = map(int, case.variant.split(":"))
    size = DTYPES[case.dtype].itemsize
    kept = features // m * n * out
    bits = next(width for width in (1, 2, 4, 8) if width >= ceil(log2(m)))
    weight = kept * size + kept * bits / 8
    return Work(weight + rows * (features + out) * size, {unit(case): 2.0 * rows * features * out})
