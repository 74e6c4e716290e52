"""What ptxas made of every kernel, against the budget beside the kernels.

`libfastops_cuda.ptxas.json` is written by the build; the budgets are the first pattern of
`budget.json` that matches a kernel's name. A kernel without a budget fails: give it one.

`registers` are those of the launch; what setmaxnreg makes of them is in instructions.json. `shared`
is static. `dynamic` is what launches ask for beside it: a number of bytes where all ask for the
same, else what is `usual` and the `most`. tests/simt/coverage.py holds emulated launches to it, and
bench.model counts with it.
"""

from __future__ import annotations

import sys

import pytest

from tests.build import budgets
from tests.build.budgets import DEFAULT_ARCHITECTURES, ROOT, unused

sys.path.insert(0, str(ROOT / "cmake"))
import ptxas_report

SHARED_OF_A_BLOCK = 227 * 1024


def kernels() -> list[tuple[str, str, dict]]:
    return budgets.kernels("ptxas")


def budget_of(kernel: str) -> dict | None:
    return budgets.budget_of(kernel, budgets.entries("budget.json"))


def test_every_kernel_has_a_budget() -> None:
    missing = {kernel for _, kernel, _ in kernels() if budget_of(kernel) is None}
    assert not missing


def test_every_budget_has_a_kernel() -> None:
    if not {arch for arch, _, _ in kernels()} >= DEFAULT_ARCHITECTURES:
        pytest.skip("not built for the default architectures, so not every kernel is here")
    assert not unused(budgets.entries("budget.json"), kernels())


def test_no_kernel_spills() -> None:
    spilling = {
        f"{arch} {kernel}": facts
        for arch, kernel, facts in kernels()
        if facts["spill_stores"] or facts["spill_loads"] or facts["stack"]
    }
    assert not spilling


def test_wgmma_is_not_serialised() -> None:
    """Where its rules are broken ptxas waits for every wgmma, or ignores setmaxnreg, with a remark
    only. C7519, a warpgroup.arrive that it put in itself, is no wait, but the source lacks a fence
    there: no kernel is to need it."""
    told = {
        f"{arch} {kernel}": facts["advice"]
        for arch, kernel, facts in kernels()
        if "advice" in facts
    }
    assert not told


@pytest.mark.parametrize("resource", ["registers", "shared"])
def test_within_budget(resource: str) -> None:
    over = {
        f"{arch} {kernel}": f"{facts[resource]} {resource}, budget {budget[resource]}"
        for arch, kernel, facts in kernels()
        if (budget := budget_of(kernel)) is not None and facts[resource] > budget[resource]
    }
    assert not over


def test_shared_memory_fits_a_block() -> None:
    """Of sm_90: static, and the most that a launch asks for."""
    over = [
        budget["kernel"]
        for budget in budgets.entries("budget.json")
        if budget["shared"] + budgets.dynamic(budget)[2] > SHARED_OF_A_BLOCK
    ]
    assert not over


def test_reads_what_ptxas_says() -> None:
    lines = [
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are "
        "serialized due to insufficient register resources in the function 'kernel_a'",
        "ptxas info    : Compiling entry function 'kernel_a' for 'sm_90a'",
        "ptxas info    : Function properties for kernel_a",
        "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads",
        "ptxas info    : Used 168 registers, used 1 barriers, 8 bytes cumulative stack size, "
        "1024 bytes smem, 400 bytes cmem[0]",
    ]
    (record,) = ptxas_report.parse(lines)
    assert record == {
        "kernel": "kernel_a", "arch": "sm_90a", "stack": 8, "spill_stores": 4, "spill_loads": 12,
        "registers": 168, "shared": 1024, "advice": ["C7510"],
    }  # fmt: skip


def test_remarks_without_a_kernel_are_of_every_kernel() -> None:
    lines = [
        "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to "
        "determine register count at entry.",
        "ptxas info    : (C7519) warpgroup.arrive is injected in around line 5 by compiler to "
        "allow use of registers in GMMA in function 'kernel_b'",
    ]
    for name in ("kernel_a", "kernel_b"):
        lines += [
            f"ptxas info    : Compiling entry function '{name}' for 'sm_90a'",
            "ptxas info    : Used 168 registers, used 1 barriers",
        ]
    advice = {record["kernel"]: record["advice"] for record in ptxas_report.parse(lines)}
    assert advice == {"kernel_a": ["C7508"], "kernel_b": ["C7508", "C7519"]}
