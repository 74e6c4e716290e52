"""The built op libraries, for the tests that look at them from outside."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "fastops" / "_lib"


def library(name: str) -> Path:
    """Path of a built library; skips where the CUDA one is absent, unless CI insists on it."""
    path = FOLDER / name
    if path.exists():
        return path
    required = os.environ.get("CI") or os.environ.get("FASTOPS_REQUIRE_CUDA") == "1"
    if os.environ.get("FASTOPS_CUDA") == "off":  # left out on purpose
        required = False
    message = f"{name} is not built (no nvcc, or FASTOPS_CUDA=off)"
    if required or "cuda" not in name:
        pytest.fail(message)
    pytest.skip(message)


def undefined_symbols(path: Path) -> set[str]:
    """Names that the dynamic linker must find elsewhere, without versions."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm (binutils)")
    text = subprocess.run(
        ["nm", "-D", "--undefined-only", str(path)], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[-1].split("@")[0] for line in text.splitlines()}
