"""The files beside the kernels that say what each may take and must have."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

from tests.build.libraries import library

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_ARCHITECTURES = {"sm_80", "sm_90a"}


def entries(name: str) -> list[dict[str, Any]]:
    """What every family's file `name` lists."""
    files = sorted((ROOT / "csrc").glob(f"*/cuda/{name}"))
    assert files, name
    return [entry for file in files for entry in json.loads(file.read_text())]


def kernels(report: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(architecture, kernel, facts) of every kernel in a report on libfastops_cuda."""
    library("libfastops_cuda.so")
    tables = json.loads(library(f"libfastops_cuda.{report}.json").read_text())
    return [
        (arch, kernel, facts) for arch, table in tables.items() for kernel, facts in table.items()
    ]


def matches(entry: dict[str, Any], kernel: str) -> bool:
    return fnmatch.fnmatchcase(kernel, entry["kernel"])


def unused(entries: list[dict], found: list[tuple[str, str, dict]]) -> list[str]:
    """Patterns that no kernel has."""
    return [e["kernel"] for e in entries if not any(matches(e, kernel) for _, kernel, _ in found)]


def budget_of(kernel: str, found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first of the entries that speaks of a kernel."""
    return next((entry for entry in found if matches(entry, kernel)), None)


def dynamic(budget: dict[str, Any]) -> tuple[int, int, int]:
    """Bytes of dynamic shared memory that launches ask for: at least, usually, at most."""
    asked = budget.get("dynamic", 0)
    return (0, asked["usual"], asked["most"]) if isinstance(asked, dict) else (asked,) * 3
