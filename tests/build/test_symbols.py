"""What the op libraries ask of the machine they are loaded on.

`torch_symbols.txt` lists the C shim functions that fastops may use. A name goes on it only if torch
2.11 has it: torch's own table, torch/csrc/stable/c/shim_function_versions.txt, dates every shim
function newer than 2.9.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import torch

from tests.build.libraries import library, undefined_symbols

ALLOWED = {
    line
    for line in Path(__file__).with_name("torch_symbols.txt").read_text().splitlines()
    if line and not line.startswith("#")
}
# Only a CUDA build of torch exports these.
CUDA_ONLY = {"aoti_torch_get_current_cuda_stream"}
# C shim functions, and anything of torch's C++ namespaces (which no stable-ABI library may touch).
TORCH = re.compile(r"(aoti_|torch_)|_Z\w*?(2at|3c10|5torch)\d")
CUDA_RUNTIME = re.compile(r"(__)?cuda[A-Z]|cu[A-Z]\w*$|nv[A-Z]|__nv")
PYTHON = re.compile(r"_?Py[A-Z_]")
LIBRARIES = ("libfastops.so", "libfastops_cuda.so")
MEGABYTE = 1 << 20


@pytest.mark.parametrize("name", LIBRARIES)
def test_only_symbols_of_torch_2_11(name: str) -> None:
    used = {s for s in undefined_symbols(library(name)) if TORCH.match(s)}
    assert used, "a library that uses nothing of torch is not an op library"
    assert used <= ALLOWED, f"not known to be in torch 2.11: {sorted(used - ALLOWED)}"


@pytest.mark.parametrize("name", LIBRARIES)
def test_no_python_symbol(name: str) -> None:
    assert not [s for s in undefined_symbols(library(name)) if PYTHON.match(s)]


@pytest.mark.parametrize("name", LIBRARIES)
def test_no_cuda_runtime_is_needed(name: str) -> None:
    """The CPU library knows no CUDA; the CUDA library carries its runtime with it."""
    assert not [s for s in undefined_symbols(library(name)) if CUDA_RUNTIME.match(s)]


def test_cpu_library_has_no_cuda_shim() -> None:
    assert not [s for s in undefined_symbols(library("libfastops.so")) if "cuda" in s]


@pytest.mark.parametrize(("name", "limit"), [("libfastops.so", 18), ("libfastops_cuda.so", 20)])
def test_size(name: str, limit: int) -> None:
    size = library(name).stat().st_size / MEGABYTE
    assert size < limit, f"{name} is {size:.1f} MB"


def test_allowed_symbols_exist_here() -> None:
    """The list itself, against the torch at hand: a misspelt name would allow nothing."""
    shim = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    missing = {s for s in ALLOWED - CUDA_ONLY if not hasattr(shim, s)}
    assert not missing
