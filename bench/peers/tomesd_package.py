"""tomesd from PyPI, where it is installed."""

from __future__ import annotations

from collections.abc import Callable


def why_missing() -> str:
    try:
        import tomesd  # noqa: F401
    except ImportError as error:
        return str(error)
    return ""


def match() -> Callable:
    from tomesd.merge import bipartite_soft_matching_random2d

    return bipartite_soft_matching_random2d
