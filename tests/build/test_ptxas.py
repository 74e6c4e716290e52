"""What ptxas made of every kernel, against the budget beside the kernels.

`libfastops_cuda.ptxas.json` is written by the build; the budgets are the first pattern of
`budget.json` that matches a kernel's name. A kernel without a budget fails: give it one.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.build.libraries import library

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("softmax", "nm", "merge")


def budgets() -> list[dict]:
    lists = (
        json.loads((ROOT / "csrc" / family / "cuda" / "budget.json").read_text())
        for family in FAMILIES
    )
    return [entry for entries in lists for entry in entries]


def kernels() -> Iterator[tuple[str, str, dict[str, int]]]:
    """(architecture, kernel, facts) of every kernel in the library."""
    library("libfastops_cuda.so")
    report = json.loads(library("libfastops_cuda.ptxas.json").read_text())
    for arch, table in report.items():
        for kernel, facts in table.items():
            yield arch, kernel, facts


def budget_of(kernel: str) -> dict | None:
    return next((b for b in budgets() if fnmatch.fnmatchcase(kernel, b["kernel"])), None)


def test_every_kernel_has_a_budget() -> None:
    missing = {kernel for _, kernel, _ in kernels() if budget_of(kernel) is None}
    assert not missing


def test_every_budget_has_a_kernel() -> None:
    if not {"sm_80", "sm_90a"} <= {arch for arch, _, _ in kernels()}:
        pytest.skip("not built for the default architectures, so not every kernel is here")
    names = {kernel for _, kernel, _ in kernels()}
    unused = [b["kernel"] for b in budgets() if not fnmatch.filter(names, b["kernel"])]
    assert not unused


def test_no_kernel_spills() -> None:
    spilling = {
        f"{arch} {kernel}": facts
        for arch, kernel, facts in kernels()
        if facts["spill_stores"] or facts["spill_loads"] or facts["stack"]
    }
    assert not spilling


@pytest.mark.parametrize("resource", ["registers", "shared"])
def test_within_budget(resource: str) -> None:
    over = {
        f"{arch} {kernel}": f"{facts[resource]} {resource}, budget {budget[resource]}"
        for arch, kernel, facts in kernels()
        if (budget := budget_of(kernel)) is not None and facts[resource] > budget[resource]
    }
    assert not over
