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
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.simt.simt_lib import ROOT, build_folder, library_path

if os.environ.get("FASTOPS_SIMT") != "1":
    pytest.skip("needs FASTOPS_SIMT=1", allow_module_level=True)


@dataclass(frozen=True)
class Family:
    """What a family of kernels adds here: its folder under csrc, and who runs all its kernels."""

    folder: str
    workload: str  # beside this file: `python WORKLOAD LIBRARY` prints the first report, or nothing
    # Part of a mutant's name -> kernel files to try first; a guess, which only saves time.
    likely: tuple[tuple[str, tuple[str, ...]], ...] = ()


# A new family gets the test by a line here.
FAMILIES = [
    Family(
        "softmax/cuda",
        "mutant_workload.py",
        (
            ("cluster_", ("cluster",)),
            ("walk.cuh", ("strided", "forward_f32", "backward_f32")),
            ("", ("forward_f32", "cluster", "backward_f32", "strided")),
        ),
    ),
]
CSRC = ROOT / "csrc"
SHARED = CSRC / "cuda" / "tile"  # belongs to every family that includes it
SYNC = re.compile(
    r"^\s*(?:ptx::)?(__syncthreads|__syncwarp|cluster_arrive|cluster_wait|cp_async_commit"
    r"|cp_async_wait<\d+>|named_barrier_sync|named_barrier_arrive|mbarrier_\w+|bulk_commit"
    r"|bulk_wait(?:_read)?<\d+>|fence_proxy_async|fence_mbarrier_init|wgmma_(?:fence|commit)"
    r"|wgmma_wait<\d+>)\(.*\);\s*$"
)
INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
# Mutants that change nothing a program can see, with the reason.
EQUIVALENT: dict[str, str] = {}


def mutants() -> dict[str, tuple[Path, int]]:
    """ "file:line statement" -> where."""
    found = {}
    for folder in [*(CSRC / family.folder for family in FAMILIES), SHARED]:
        for path in sorted([*folder.glob("*.cuh"), *folder.glob("*.cu")]):
            for number, line in enumerate(path.read_text().split("\n")):
                if SYNC.match(line):
                    found[f"{path.relative_to(CSRC)}:{number + 1} {line.strip()}"] = (path, number)
    return found


MUTANTS = mutants()


def compile_commands() -> dict[str, list[str]]:
    """Kernel file, from csrc -> its command in the emulated build."""
    entries = json.loads((build_folder() / "compile_commands.json").read_text())
    return {
        str(Path(entry["file"]).relative_to(CSRC)): shlex.split(entry["command"])
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


def report_of(library: Path, family: Family) -> str:
    workload = Path(__file__).with_name(family.workload)
    environment = {k: v for k, v in os.environ.items() if k != "FASTOPS_SIMT"}
    run = subprocess.run(
        [sys.executable, workload, library], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def includes(path: Path, header: Path) -> bool:
    """Does `path` include `header`, directly or through other files of csrc?"""
    found = INCLUDE.findall(path.read_text())
    return any(
        CSRC / name == header or ((CSRC / name).suffix == ".cuh" and includes(CSRC / name, header))
        for name in found
        if (CSRC / name).exists()
    )


def candidates(mutant: str, path: Path) -> list[tuple[Family, Path]]:
    """Kernel files in which the mutant may live, the likeliest first."""
    files = []
    for family in FAMILIES:
        first = next((names for pattern, names in family.likely if pattern in mutant), ())
        sources = sorted(
            (CSRC / family.folder).glob("*.cu"),
            key=lambda s: (first.index(s.stem) if s.stem in first else len(first), s.stem),
        )
        files += [(family, s) for s in sources if s == path or includes(s, path)]
    return files


def test_there_are_mutants() -> None:
    assert len(MUTANTS) >= 10
    assert set(EQUIVALENT) <= set(MUTANTS), "an equivalent mutant that no longer exists"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.folder)
def test_unchanged_kernels_give_no_report(family: Family) -> None:
    assert report_of(library_path("libfastops_simt"), family) == ""


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m not in EQUIVALENT])
def test_mutant_is_caught(mutant: str, tmp_path: Path) -> None:
    path, number = MUTANTS[mutant]
    lines = path.read_text().split("\n")
    lines[number] = ";"
    overlay = tmp_path / path.relative_to(CSRC)
    overlay.parent.mkdir(parents=True)
    overlay.write_text("\n".join(lines))

    folder = build_folder() / "csrc" / "simt" / "CMakeFiles"
    kept = {
        target: sorted((folder / f"fastops_simt_{target}.dir").rglob("*.o"))
        for target in ("runtime", "ops", "cuda")
    }
    commands = compile_commands()
    for family, source in candidates(mutant, path):
        command = commands[str(source.relative_to(CSRC))]
        new = tmp_path / f"{source.name}.o"
        command[command.index("-o") + 1] = str(new)
        command.insert(1, f"-I{tmp_path}")
        if source == path:
            command[command.index("-c") + 1] = str(overlay)
        subprocess.run(command, check=True, cwd=build_folder())
        kernels = [o for o in kept["cuda"] if not str(o).endswith(f"{family.folder}/{new.name}")]
        library = tmp_path / f"mutant_{source.stem}.so"
        link([*kept["runtime"], *kept["ops"], *kernels, new], library)
        if report_of(library, family):
            return
    pytest.fail(f"nothing noticed that {mutant} is gone")
