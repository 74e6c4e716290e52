"""Deletes each synchronisation line of the shipped kernels in turn: a check must speak every time.

The numbers may well come out right without it; that is the point. Each mutant recompiles the
kernel files that could hold the line until one of them is caught. Takes minutes: it runs only
under FASTOPS_SIMT=1.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.simt.simt_lib import ROOT, build_folder, library_path

if os.environ.get("FASTOPS_SIMT") != "1":
    pytest.skip("needs FASTOPS_SIMT=1", allow_module_level=True)

SOURCES = [
    ROOT / "csrc" / "softmax" / "cuda",
    ROOT / "csrc" / "nm" / "cuda",
    ROOT / "csrc" / "cuda" / "tile",
]
SYNC = re.compile(
    r"^\s*(?:ptx::)?(__syncthreads|__syncwarp|cluster_arrive|cluster_wait|cp_async_commit"
    r"|cp_async_wait<\d+>|named_barrier_sync|named_barrier_arrive|mbarrier_\w+|bulk_commit"
    r"|bulk_wait(?:_read)?<\d+>|fence_proxy_async|fence_mbarrier_init|wgmma_(?:fence|commit)"
    r"|wgmma_wait<\d+>)\(.*\);\s*$"
)
# Mutants that change nothing a program can see, with the reason.
EQUIVALENT: dict[str, str] = {}


def mutants() -> dict[str, tuple[Path, int]]:
    """ "file:line statement" -> where."""
    found = {}
    for folder in SOURCES:
        for path in sorted(folder.glob("*.cuh")):
            for number, line in enumerate(path.read_text().split("\n")):
                if SYNC.match(line):
                    found[f"{path.name}:{number + 1} {line.strip()}"] = (path, number)
    return found


MUTANTS = mutants()


def compile_commands() -> dict[str, list[str]]:
    """Kernel file name -> its command in the emulated build."""
    entries = json.loads((build_folder() / "compile_commands.json").read_text())
    return {
        Path(entry["file"]).name: shlex.split(entry["command"])
        for entry in entries
        if "fastops_simt_cuda.dir" in entry["command"]
    }


def link(objects: list[Path], output: Path) -> None:
    torch_lib = Path(torch.__file__).parent / "lib"
    exports = ROOT / "csrc" / "simt" / "exports.map"
    subprocess.run(
        ["g++", "-shared", "-o", output, *objects, f"-Wl,--version-script={exports}",
         f"-L{torch_lib}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"],
        check=True,
    )  # fmt: skip


def report_of(library: Path) -> str:
    workload = Path(__file__).with_name("mutant_workload.py")
    environment = {k: v for k, v in os.environ.items() if k != "FASTOPS_SIMT"}
    run = subprocess.run(
        [sys.executable, workload, library], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def candidates(line: str, path: Path) -> list[str]:
    """Kernel files in which the mutant may live, the likeliest first."""
    if "cluster" in line:
        return ["cluster.cu"]
    if path.name == "walk.cuh":
        return ["strided.cu", "forward_f32.cu", "backward_f32.cu"]
    if path.parent.parent.name == "nm":
        return ["sparse_f16.cu"] if path.name == "sparse_matmul.cuh" else ["dense_f32.cu"]
    return ["forward_f32.cu", "cluster.cu", "backward_f32.cu", "strided.cu"]


def test_there_are_mutants() -> None:
    assert len(MUTANTS) >= 10
    assert set(EQUIVALENT) <= set(MUTANTS), "an equivalent mutant that no longer exists"


def test_unchanged_kernels_give_no_report() -> None:
    assert report_of(library_path("libfastops_simt")) == ""


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m not in EQUIVALENT])
def test_mutant_is_caught(mutant: str, tmp_path: Path) -> None:
    path, number = MUTANTS[mutant]
    lines = path.read_text().split("\n")
    lines[number] = ";"
    overlay = tmp_path / path.relative_to(ROOT / "csrc")
    overlay.parent.mkdir(parents=True)
    overlay.write_text("\n".join(lines))

    folder = build_folder() / "csrc" / "simt" / "CMakeFiles"
    kept = {
        target: sorted((folder / f"fastops_simt_{target}.dir").rglob("*.o"))
        for target in ("runtime", "ops", "cuda")
    }
    commands = compile_commands()
    for source in candidates(mutant, path):
        command = commands[source]
        new = tmp_path / f"{source}.o"
        command[command.index("-o") + 1] = str(new)
        command.insert(1, f"-I{tmp_path}")
        subprocess.run(command, check=True, cwd=build_folder())
        kernels = [o for o in kept["cuda"] if o.name != f"{source}.o"]
        library = tmp_path / f"mutant_{Path(source).stem}.so"
        link([*kept["runtime"], *kept["ops"], *kernels, new], library)
        if report_of(library):
            return
    pytest.fail(f"nothing noticed that {mutant} is gone")
