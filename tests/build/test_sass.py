"""The machine code of every kernel has the instructions that the kernel is written for.

`libfastops_cuda.sass.json` is written by `make sass`. `instructions.json` beside the kernels names
instructions (cmake/sass_report.py, CLASSES) for patterns of kernel names; every pattern that
matches applies: what a kernel `uses`, has `at_most`, `at_least` or `exactly`. What no kernel may
have is here.

Every count of PINNED is exact, as the compiler of requirements/cuda.txt makes it. Where a kernel or
that compiler changes on purpose: `make sass`, then make the entries what the failure says the
kernels have, and the tables of docs/attention.md and docs/nm.md with them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.build import budgets
from tests.build.budgets import DEFAULT_ARCHITECTURES, ROOT, kernels, matches, unused
from tests.build.libraries import library

sys.path.insert(0, str(ROOT / "cmake"))
import sass_report

NEVER = {
    "FLOAT_ATOMIC": "sums would depend on scheduling",
    "LOCAL": "registers spilled, or an array indexed at run time",
}
# Asynchronous copies and products, their barriers, and what setmaxnreg leads to: in kernels for
# Hopper, which are to say how many they have of each.
PINNED = {
    "registers", "USETMAXREG", "HGMMA", "HGMMA.SP", "UTMALDG", "UTMASTG", "UBLKCP", "SYNCS",
}  # fmt: skip
COMPILER = "13.0."


def required() -> list[dict]:
    return budgets.entries("instructions.json")


def test_every_kernel_is_in_both_reports() -> None:
    """A kernel that the disassembly lost would be checked for nothing."""
    names = [
        {(arch, kernel) for arch, kernel, _ in kernels(report)} for report in ("sass", "ptxas")
    ]
    assert names[0] == names[1]


def test_kernels_use_the_instructions_they_are_written_for() -> None:
    known = set(sass_report.CLASSES)
    assert not [e for e in required() if not set(e.get("uses", ())) <= known]
    lost = [
        f"{arch} {kernel}: no {name}"
        for arch, kernel, facts in kernels("sass")
        for entry in required()
        if matches(entry, kernel)
        for name in entry.get("uses", ())
        if not facts.get(name)
    ]
    assert not lost, "\n".join(lost)


def test_every_pattern_has_a_kernel() -> None:
    found = kernels("sass")
    if not {arch for arch, _, _ in found} >= DEFAULT_ARCHITECTURES:
        pytest.skip("not built for the default architectures, so not every kernel is here")
    assert not unused(required(), found)


@pytest.mark.parametrize("name", NEVER)
def test_no_kernel_has(name: str) -> None:
    having = [f"{arch} {kernel}" for arch, kernel, facts in kernels("sass") if facts.get(name)]
    assert not having, NEVER[name]


# at_most, for example of WARPGROUP: more of them, and wgmma has been serialised. at_least, for
# example of exponentials while products are in flight: ptxas may move them.
@pytest.mark.parametrize(("bound", "sign"), [("at_most", 1), ("at_least", -1)])
def test_within_bounds(bound: str, sign: int) -> None:
    outside = [
        f"{arch} {kernel}: {facts.get(name, 0)} {name}, {bound} {limit}"
        for arch, kernel, facts in kernels("sass")
        for entry in required()
        if matches(entry, kernel)
        for name, limit in entry.get(bound, {}).items()
        if sign * facts.get(name, 0) > sign * limit
    ]
    assert not outside, "\n".join(outside)


def test_counts_are_exact() -> None:
    """Of PINNED both ways: a kernel that has something no entry speaks of fails as well."""
    compiler = json.loads(library("build.json").read_text())["cuda"]
    if not compiler.startswith(COMPILER):
        pytest.skip(f"counts are as nvcc {COMPILER}* makes them, this is {compiler}")
    wrong = []
    for arch, kernel, facts in kernels("sass"):
        expected = {}
        for entry in required():
            if matches(entry, kernel):
                expected |= entry.get("exactly", {})
        found = {name: facts[name] for name in sorted(PINNED | set(expected)) if name in facts}
        if found != expected:
            wrong.append(f"{arch} {kernel}: has {found}, instructions.json says {expected}")
    assert not wrong, "\n".join(wrong)


# ---- the reader itself --------------------------------------------------------------------------

DISASSEMBLY = """
//--------------------- .text.one --------------------------
        .global         one
.text.one:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.64 R4, desc[UR4][R2.64] ;
        /*0030*/                   HFMA2.MMA R19, -RZ, RZ, 0, 0 ;
        /*0040*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0050*/                   HMMA.SP.16832.F32 R4, R8, R12, R4, R2, 0x0 ;
.L_x_1:
        /*10060*/             @UP1 LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64] ;
        /*10070*/                  HGMMA.SP.64x256x32.F32.BF16 R24, R168, gdesc[UR4] ;
.text.two:
        /*0000*/                   RED.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R0 ;
        /*0010*/                   ATOMG.E.ADD.STRONG.GPU PT, R2, desc[UR4][R2.64], R3 ;
        /*0020*/                   STL [R1+0x4], R0 ;
        /*0030*/                   MUFU.EX2 R0, R0 ;
"""


def test_counts() -> None:
    found = sass_report.count(DISASSEMBLY.splitlines())
    one = {"total": 8, "LDG.128": 1, "HMMA": 1, "HMMA.SP": 1, "LDGSTS": 1, "HGMMA.SP": 1}
    assert found["one"] == one
    assert found["two"] == {"total": 4, "FLOAT_ATOMIC": 1, "LOCAL": 1, "MUFU.EX2": 1}


def test_exponentials_between_waits() -> None:
    waits = """
.text.one:
        /*0000*/                   HGMMA.64x128x16.F32 R24, gdesc[UR4], R24, gsb0 ;
        /*0010*/                   MUFU.EX2 R0, R0 ;
        /*0020*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*0030*/                   MUFU.EX2 R0, R0 ;
        /*0040*/               @P0 MUFU.EX2 R1, R1 ;
        /*0050*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0060*/                   MUFU.EX2 R0, R0 ;
        /*0070*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
.text.two:
        /*0000*/                   MUFU.EX2 R0, R0 ;
"""
    found = sass_report.count(waits.splitlines())
    assert found["one"] == {
        "total": 8, "HGMMA": 1, "MUFU.EX2": 4, "WARPGROUP": 3, sass_report.OVERLAPPED: 2,
    }  # fmt: skip
    assert found["two"] == {"total": 1, "MUFU.EX2": 1}


def test_registers_after_setmaxnreg() -> None:
    code = """
.text.one:
        /*0000*/                   MOV R9, R8 ;
        /*0010*/                   USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xf0 ;
        /*0020*/              @!P0 FFMA R200, R3, R100, RZ ;
        /*0030*/                   USETMAXREG.DEALLOC.CTAPOOL 0x18 ;
        /*0040*/                   MOV R20, UR237 ;
.text.two:
        /*0000*/                   MOV R250, R8 ;
"""
    found = sass_report.count(code.splitlines())
    assert found["one"] == {"total": 5, "USETMAXREG": 2, "registers": 201}
    assert found["two"] == {"total": 1}


def test_what_has_been_read_is_not_read_again(tmp_path: Path, monkeypatch) -> None:
    reads = Counter()

    class Disassembler:
        returncode = 0

        def __init__(self, command, **_):
            reads[command[-1]] += 1
            self.stdout = iter(DISASSEMBLY.splitlines())

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(sass_report, "CACHE", tmp_path / "kept")
    monkeypatch.setattr(sass_report, "launch_bounds", lambda data: {"one": 128})
    monkeypatch.setattr(subprocess, "Popen", Disassembler)
    for name, content in (("a", b"x"), ("b", b"y"), ("a", b"x"), ("a", b"z")):
        (tmp_path / name).write_bytes(content)
        facts = sass_report.read(tmp_path / name, "nvdisasm")
        assert facts["one"]["threads"] == 128 and "two" not in facts
    assert reads == {str(tmp_path / "a"): 2, str(tmp_path / "b"): 1}
