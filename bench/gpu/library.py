"""The CUDA library of a run: the one at hand, a prebuilt one, or one built here, and its name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .steps import ROOT

FOLDER = ROOT / "fastops" / "_lib"
NAME = "libfastops_cuda.so"
SHIPPED = ("*.so", "*.json", "fastops_conformance")


def take(prebuilt: Path, folder: Path = FOLDER) -> None:
    """Copies what was built elsewhere to where fastops looks for it."""
    if not (prebuilt / NAME).exists():
        raise FileNotFoundError(f"--prebuilt {prebuilt}: there is no {NAME} in it")
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in SHIPPED:
        for path in prebuilt.glob(pattern):
            if path.resolve() != (folder / path.name).resolve():
                shutil.copy2(path, folder / path.name)


def build_folder() -> Path:
    """Where setup.py has CMake build for this interpreter."""
    return ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"


def build(capability: tuple[int, int]) -> None:
    """Builds it for this GPU with the interpreter and the torch of this process, no more."""
    environment = {
        **os.environ,
        "FASTOPS_CUDA": "on",
        "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", architecture(capability)),
        "CMAKE_ARGS": f"-DFASTOPS_SIMT=ON {os.environ.get('CMAKE_ARGS', '')}",
    }
    if "CUDACXX" not in environment and not shutil.which("nvcc"):
        find = subprocess.run(
            [sys.executable, str(ROOT / "cmake/find_nvcc.py")], capture_output=True, text=True
        )
        if find.returncode:
            raise RuntimeError(find.stderr.strip())
        environment["CUDACXX"] = find.stdout.strip()
    for command in (
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        ["cmake", "--build", str(build_folder()), "--target", "fastops_conformance"],
    ):
        subprocess.run(command, cwd=ROOT, env=environment, check=True)


def architecture(capability: tuple[int, int]) -> str:
    """What to compile for a GPU, as TORCH_CUDA_ARCH_LIST: sm_90a has kernels of its own, newer
    ones take PTX of sm_80."""
    major, minor = capability
    if major == 9:
        return "9.0a"
    return f"{major}.{minor}" if major == 8 else "8.0+PTX"


def name(folder: Path = FOLDER) -> str:
    """Tells one build from another: the commit it was configured at, and a hash of the library."""
    library = folder / NAME
    try:
        commit = json.loads((folder / "build.json").read_text())["commit"]
    except (OSError, ValueError, KeyError):
        commit = "unknown commit"
    return f"{commit} {hashlib.sha256(library.read_bytes()).hexdigest()[:12]}"
