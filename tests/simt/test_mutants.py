"""Leaves out each synchronisation line of the shipped kernels in turn: a check must speak every
time. The numbers may well come out right without it; that is the point. `make test-simt` builds
the library that holds the mutants.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simt.mutants import CSRC, FILES, mutants, overlooked
from tests.simt.simt_lib import build_folder

FOLDER = build_folder() / "csrc" / "simt" / "mutants"
# Each has a function of that name in mutant_workload.py.
FAMILIES = ("softmax", "nm", "merge", "attention")
SECONDS = 60  # more than any run takes
MUTANTS = mutants()
# Mutants that change nothing a program can see, with the reason.
EQUIVALENT: dict[str, str] = {}


class Workload:
    """A process that runs families' ops with one synchronisation left out."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "FASTOPS_SIMT"}
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("mutant_workload.py"),
             FOLDER / "simt_mutants.so"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def first_report(self, mutant: int, families: tuple[str, ...]) -> str:
        assert self.process.stdin and self.process.stdout
        print(mutant, *families, file=self.process.stdin, flush=True)
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.process.kill()
            self.process.wait()  # so that the next mutant gets a new one
            pytest.fail("the workload hangs" if ready == [] else "the workload died")
        return json.loads(line)


@pytest.fixture(scope="module")
def library() -> None:
    """Says so where the mutants are missing, or not those of these sources."""
    listed = FOLDER / "mutants.txt"
    current = (FOLDER / "simt_mutants.so").exists() and listed.read_text() == "\n".join(MUTANTS)
    if not current:
        message = "the mutants are not built, or outdated: make mutants"
        assert os.environ.get("FASTOPS_REQUIRE_SIMT") != "1", message
        pytest.skip(message)


@pytest.fixture(scope="module")
def shared_workload(library: None) -> Iterator[list[Workload]]:
    held: list[Workload] = []
    yield held
    for workload in held:
        workload.process.kill()
        workload.process.communicate()


@pytest.fixture
def workload(shared_workload: list[Workload]) -> Workload:
    """The running process, or a new one where the last mutant ended it."""
    if not shared_workload or shared_workload[-1].process.poll() is not None:
        shared_workload.append(Workload())
    return shared_workload[-1]


def families_of(mutant: str) -> tuple[str, ...]:
    family = mutant.split("/")[0]
    return (family,) if family in FAMILIES else FAMILIES


def test_there_are_mutants() -> None:
    assert len(MUTANTS) >= 40
    assert set(EQUIVALENT) <= set(MUTANTS), "an equivalent mutant that no longer exists"
    assert {path.relative_to(CSRC).parts[0] for path in FILES} == {*FAMILIES, "cuda"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CSRC)))
def test_every_synchronisation_can_be_left_out(path: Path) -> None:
    assert overlooked(path.read_text()) == []


def test_what_would_be_overlooked() -> None:
    assert overlooked(
        "if (last) __syncthreads();\n  __syncwarp();  // why\n// __syncwarp() is\n"
    ) == ["if (last) __syncthreads();"]
    assert overlooked("ptx::mbarrier_arrive(\n    address);") == ["ptx::mbarrier_arrive("]


@pytest.mark.parametrize("family", FAMILIES)
def test_unchanged_kernels_give_no_report(family: str, workload: Workload) -> None:
    assert workload.first_report(-1, (family,)) == ""


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m not in EQUIVALENT])
def test_mutant_is_caught(mutant: str, workload: Workload) -> None:
    report = workload.first_report(MUTANTS.index(mutant), families_of(mutant))
    assert re.match("simt: kernel ", report), report or f"nothing noticed that {mutant} is gone"
