"""Prints the path of an nvcc: the one on this machine, or the one of PyPI's nvidia-cuda-nvcc.

PyPI's packages put a toolkit under `nvidia/cu<major>` of site-packages, with its libraries in
`lib`; nvcc itself looks for them in `lib64`, so the first call adds that name.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

PACKAGES = "nvidia-cuda-nvcc nvidia-cuda-crt nvidia-cuda-cccl nvidia-cuda-runtime nvidia-nvvm"


def installed_from_pypi() -> Path | None:
    """nvcc of the newest toolkit in this Python's site-packages."""
    roots = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu[0-9]*/bin/nvcc"))
    if not roots:
        return None
    root = roots[-1].parents[1]
    if not (root / "lib64").exists():
        (root / "lib64").symlink_to("lib")
    return roots[-1]


def find() -> str | None:
    for name in (os.environ.get("CUDACXX"), "nvcc", "/usr/local/cuda/bin/nvcc"):
        if name and (path := shutil.which(name)):
            return path
    path = installed_from_pypi()
    return str(path) if path else None


if __name__ == "__main__":
    nvcc = find()
    if nvcc is None:
        sys.exit(f"no nvcc here; `pip install {PACKAGES}` (all ==13.0.*) brings one")
    print(nvcc)
