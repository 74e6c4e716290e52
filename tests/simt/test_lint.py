"""What a kernel file may not contain, so that it can run on the host (docs/simt.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.simt.simt_lib import ROOT

CSRC = ROOT / "csrc"
KERNEL_FILES = sorted(
    path for path in CSRC.glob("**/cuda/**/*") if path.suffix in (".cu", ".cuh", ".h")
)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)

# Pattern -> (why, files where it is allowed).
RULES = {
    r"\basm\b": ("inline assembly belongs in csrc/cuda/ptx", "cuda/ptx/"),
    r"<<<": ("launch through csrc/cuda/launch.h", ""),
    r"__CUDA_ARCH__": ("choose by template argument or heuristic", ""),
    r"\bSIMT_HOST\b": (
        "kernels do not know where they run",
        "cuda/ptx/|cuda/runtime.h|cuda/launch.h|cuda/tensor_map.h",
    ),
    r"#include\s*[<\"](torch|ATen|c10|cooperative_groups)": ("no torch, no cooperative groups", ""),
    r"#include\s*<cuda_runtime": ("include cuda/runtime.h", "cuda/runtime.h|cuda/launch.h"),
    r"\bcuda[A-Z]\w+\(": (
        "runtime calls belong in csrc/cuda/launch.h",
        "cuda/launch.h|cuda/tensor_map.h",
    ),
    r"extern\s+__shared__": ("use FASTOPS_DYNAMIC_SHARED", "cuda/runtime.h"),
    r"\bstd::atomic\b|\bcuda::atomic\b": ("use the atomic functions", "cuda/launch.h"),
}


def findings(text: str, name: str) -> list[str]:
    code = COMMENT.sub(lambda m: "\n" * m.group().count("\n"), text)
    found = []
    for pattern, (why, allowed) in RULES.items():
        if allowed and re.search(allowed, name):
            continue
        found += [
            f"{name}:{code[: m.start()].count(chr(10)) + 1}: {m.group().strip()}: {why}"
            for m in re.finditer(pattern, code)
        ]
    return found


def test_there_are_kernel_files() -> None:
    assert len(KERNEL_FILES) > 10


@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda p: str(p.relative_to(CSRC)))
def test_kernel_file(path: Path) -> None:
    assert findings(path.read_text(), str(path.relative_to(CSRC))) == []


def test_two_synchronisations_never_share_a_line() -> None:
    """A report names a line; the mutation test deletes one."""
    sync = re.compile(
        r"__sync\w+\(|_sync\(|cluster_(?:arrive|wait)\(|cp_async_(?:wait|commit)"
        r"|named_barrier_|[ls][dt]matrix_x|mma_(?:sp_)?m\d|wgmma_(?:fence|commit|wait|ss|rs|sp)"
        r"|mbarrier_(?!t)|bulk_(?:commit|wait)|fence_(?:proxy|mbarrier)"
    )
    for path in KERNEL_FILES:
        if "ptx" in path.parts:
            continue
        for line in COMMENT.sub("", path.read_text()).split("\n"):
            assert len(sync.findall(line)) <= 1, f"{path.name}: {line}"


@pytest.mark.parametrize(
    "line",
    [
        'asm volatile("bar.sync 0;");',
        "kernel<<<1, 32>>>();",
        "#if __CUDA_ARCH__ >= 900",
        "#include <torch/extension.h>",
        "cudaMemsetAsync(p, 0, n, s);",
        "extern __shared__ float tile[];",
        "#ifdef SIMT_HOST",
    ],
)
def test_the_lint_sees(line: str) -> None:
    assert findings(f"// fine\n{line}\n", "softmax/cuda/new.cu") != []
    assert findings(f"// {line}\n", "softmax/cuda/new.cu") == []
