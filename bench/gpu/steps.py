"""What `python -m bench.gpu` does, as commands: a plan, made from the families that there are."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..families import FAMILIES, name_of, tests_of

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("correctness", "sanitizers", "benchmarks", "report")
GPU_TESTS = "tests/cuda"
CONFORMANCE = "conformance.json"  # of a device's folder
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# A test that takes the `device` fixture.
ON_DEVICE = re.compile(r"def test_\w+\([^)]*\bdevice\b")
# What steps that are run again are called, and where their times go, within the device's folder.
HOPPER, HOPPER_FOLDER = "Hopper kernels", "hopper"
# A sanitizer's own exit status, which no program under it has.
FOUND = 99


@dataclass(frozen=True)
class Step:
    """One command. What is missing keeps it from running, and is said."""

    part: str
    name: str
    command: tuple[str, ...]
    missing: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    result: Path | None = None  # a file that the command fills as it goes
    limit_s: float = 3600.0  # what takes longer hangs

    @property
    def key(self) -> str:
        return f"{self.part}: {self.name}"


def every_op() -> tuple[str, ...]:
    return tuple(op for family in FAMILIES for op in family.OPS)


def plan(
    parts: Sequence[str],
    ops: Sequence[str] | None,
    results: Path,
    quick: bool = False,
    hopper: bool = False,
) -> list[Step]:
    """The steps of `parts` in their order, about `ops` alone where there are any. The report is no
    step: it needs no other process. `hopper`: once more with the kernels that need a Hopper GPU,
    which are off by default; their times go to a folder beside the others, for bench.compare."""
    steps = []
    for part in PARTS:
        if part not in parts:
            continue
        if part == "correctness":
            steps += _correctness(ops, results)
        elif part == "sanitizers":
            steps += _sanitizers(ops)
        elif part == "benchmarks":
            steps += _benchmarks(ops, results, quick)
    return steps + (_with_hopper_kernels(steps, results / HOPPER_FOLDER) if hopper else [])


def _with_hopper_kernels(steps: Sequence[Step], results: Path) -> list[Step]:
    dispatchers = (ROOT / "csrc").glob("*/cuda/*.cu*")
    having = {path.parts[-3] for path in dispatchers if "cuda/hopper.h" in path.read_text()}
    again = []
    for step in steps:
        subject = re.split(r"[/,]", step.name.removeprefix("tests/"))[0]
        if subject not in having | ({"cuda"} if step.part == "correctness" else set(TOOLS)):
            continue
        path = results / step.result.name if step.result else None
        command = tuple(str(path) if word == str(step.result) else word for word in step.command)
        again.append(
            replace(
                step,
                name=f"{step.name}, {HOPPER}",
                command=command,
                environment={**step.environment, "FASTOPS_SM90": "1"},
                result=path,
            )
        )
    return again


def _pytest(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rfEs", *arguments)


def _correctness(ops: Sequence[str] | None, results: Path) -> list[Step]:
    if ops:
        wanted = [f for f in FAMILIES if set(ops) & set(f.OPS)]
        folders, steps = [GPU_TESTS, *dict.fromkeys(map(tests_of, wanted))], []
    else:
        conformance = _pytest("tests/simt/test_conformance.py")
        steps = [_record(results), Step("correctness", "emulator against this GPU", conformance)]
        folders = [GPU_TESTS, *(f for f in _test_folders() if f != GPU_TESTS)]
    for folder in folders:
        files = {str(path.relative_to(ROOT)): path.read_text() for path in _test_files(folder)}
        # All of tests/cuda, and what the `device` fixture put on a GPU.
        if folder == GPU_TESTS or any(map(ON_DEVICE.search, files.values())):
            steps.append(Step("correctness", folder, _pytest(folder, "-k", "cuda")))
        # Kernels' tests that are written for CPU tensors, carried to the GPU (tests/cuda/moved.py).
        plain = [
            f for f, text in files.items() if "mark.isa" in text and not ON_DEVICE.search(text)
        ]
        if plain:
            chosen = _pytest(*sorted(plain), "-m", "isa and not large")
            carried = {"FASTOPS_TESTS_ON": "cuda"}
            steps.append(Step("correctness", f"{folder}, carried", chosen, environment=carried))
    return steps


def _test_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("test_*.py"))


def _test_folders() -> list[str]:
    """The folders of tests of what runs on a device; the others test tools and the build."""
    found = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    return [f"tests/{name}" for name in sorted(found - {"bench", "build", "simt"})]


def _record(results: Path) -> Step:
    """The one-instruction kernels, for the emulator to be held against (docs/simt.md)."""
    built = sorted((ROOT / "build").glob("cmake-*/fastops_conformance"))
    built += sorted((ROOT / "fastops" / "_lib").glob("fastops_conformance"))
    program = str(built[0]) if built else "fastops_conformance"
    return Step(
        "correctness",
        "record of single instructions",
        (sys.executable, "-m", "tests.simt.record", program, str(results / CONFORMANCE)),
        missing="" if built else "fastops_conformance is not built (make conformance)",
    )


def sanitizer() -> str | None:
    places = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
    name = "compute-sanitizer"
    return shutil.which(name) or shutil.which(name, path=":".join(places))


def _sanitizers(ops: Sequence[str] | None) -> list[Step]:
    program = sanitizer()
    chosen = ("-k", " or ".join(ops)) if ops else ()
    steps = []
    for tool in TOOLS:
        # initcheck must see who writes what is read; the others look at our kernels alone.
        only = () if tool == "initcheck" else ("--kernel-name", "kernel_substring=fastops")
        command = (
            program or "compute-sanitizer", "--tool", tool, "--error-exitcode", str(FOUND), *only,
            *_pytest(f"{GPU_TESTS}/test_cuda_sanitized.py", *chosen),
        )  # fmt: skip
        steps.append(
            Step(
                "sanitizers",
                tool,
                command,
                missing="" if program else "compute-sanitizer is not installed",
                # Each tensor its own allocation, so that a stray access leaves it.
                environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )
        )
    return steps


def _benchmarks(ops: Sequence[str] | None, results: Path, quick: bool) -> list[Step]:
    steps = []
    for family in FAMILIES:
        for op in family.OPS:
            if ops is not None and op not in ops:
                continue
            path = results / f"{op}.json"
            command = (
                sys.executable, "-m", "bench", "--device", "cuda", "--op", op, "--json", str(path),
                *(["--quick"] if quick else []),
            )  # fmt: skip
            steps.append(Step("benchmarks", f"{name_of(family)}, {op}", command, result=path))
    return steps
