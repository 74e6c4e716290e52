"""Where the libraries of a build with -DFASTOPS_SIMT=ON are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPTION = "CMAKE_ARGS=-DFASTOPS_SIMT=ON"


def library_path(name: str) -> Path:
    """The built library, or FileNotFoundError saying how to build it (an error in CI)."""
    path = ROOT / "fastops" / "_lib" / f"{name}.so"
    if path.exists():
        return path
    message = f"{path.name} is not built: make test-simt, or setup.py with {OPTION}"
    if os.environ.get("FASTOPS_REQUIRE_SIMT") == "1":
        raise RuntimeError(message)
    raise FileNotFoundError(message)


def build_folder() -> Path:
    """Where CMake built them."""
    return ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
