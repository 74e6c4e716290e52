"""entmax from PyPI, where it is installed."""

from __future__ import annotations

from collections.abc import Callable


def why_missing() -> str:
    try:
        import entmax  # noqa: F401
    except ImportError as error:
        return str(error)
    return ""


def forward(alpha: float) -> Callable:
    """The package's fastest exact way; by sorting for 1.5 and 2, else by bisection."""
    import entmax

    if alpha == 2.0:
        return entmax.sparsemax
    if alpha == 1.5:
        return entmax.entmax15
    # The number of halvings its own documentation calls enough for fp32.
    return lambda x: entmax.entmax_bisect(x, alpha, n_iter=24)
