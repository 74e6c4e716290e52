"""What TORCH_CUDA_ARCH_LIST becomes: cmake/cuda_archs.cmake, run as a script."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.build.budgets import ROOT

SCRIPT = """
include({file})
fastops_gencode("{archs}" all hopper)
message("all: ${{all}}")
message("hopper: ${{hopper}}")
"""


def run(archs: str, folder: Path) -> subprocess.CompletedProcess:
    script = folder / "script.cmake"
    script.write_text(SCRIPT.format(file=ROOT / "cmake" / "cuda_archs.cmake", archs=archs))
    return subprocess.run(["cmake", "-P", script], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("archs", "everywhere", "hopper"),
    [
        ("8.0+PTX;9.0a", ["sm_80", "compute_80", "sm_90a"], ["sm_90a"]),
        ("8.0;9.0", ["sm_80", "sm_90"], ["sm_90a"]),
        ("8.0 9.0+PTX", ["sm_80", "sm_90", "compute_90"], ["sm_90a", "compute_90a"]),
        ("9.0;9.0a", ["sm_90", "sm_90a"], ["sm_90a"]),
        ("8.0;8.6;12.0", ["sm_80", "sm_86", "sm_120"], []),
    ],
)
def test_nine_means_sm_90a_where_its_instructions_are(
    archs: str, everywhere: list[str], hopper: list[str], tmp_path: Path
) -> None:
    ran = run(archs, tmp_path)
    assert ran.returncode == 0, ran.stderr
    lines = dict(line.split(": ", 1) for line in ran.stderr.splitlines())
    for name, expected in (("all", everywhere), ("hopper", hopper)):
        pairs = re.findall(r"arch=compute_(\w+),code=(\w+)", lines[name])
        assert [code for _, code in pairs] == expected
        assert all(code.split("_")[1] == arch for arch, code in pairs)


@pytest.mark.parametrize(("archs", "says"), [("Hopper", "cannot read"), ("7.5", "older than")])
def test_what_cannot_be_built_is_refused(archs: str, says: str, tmp_path: Path) -> None:
    ran = run(archs, tmp_path)
    assert ran.returncode != 0
    assert says in ran.stderr
