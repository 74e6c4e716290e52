"""The workflows hold no logic: whatever a step runs is a target of the Makefile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
COMMAND = re.compile(r'make ([\w-]+)( [A-Z]+=(\$\{\{[^}]*\}\}|"[^"]*"|[\w.-]+))*')
RUN = re.compile(r"^\s*-?\s*run:\s*(.*)$", re.MULTILINE)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_steps_are_make_targets(path: Path) -> None:
    commands = RUN.findall(path.read_text())
    assert commands
    for command in commands:
        match = COMMAND.fullmatch(command)
        assert match, command
        assert match[1] in targets(), command


def test_there_are_workflows() -> None:
    assert {path.name for path in WORKFLOWS} == {"ci.yml", "gpu.yml"}
