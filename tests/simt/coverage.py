"""Have the emulated tests run every kernel, and every way? `python -m tests.simt.coverage FILE`.

Under FASTOPS_SIMT_COVERAGE=FILE the runtime adds a line to it for each kernel and way to run it
(csrc/simt/coverage.cpp). Required of the kernels that libfastops_simt.so holds: each instantiation
has run, and each kernel with each element type in three orders of threads, with asynchronous copies
late and early; and their launches have asked for the dynamic shared memory that budget.json says.
"""

from __future__ import annotations

import collections
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.build import budgets
from tests.simt.simt_lib import ROOT, library_path

LIBRARY = "libfastops_simt"
WAYS = {"ascending", "descending", "random", "late", "early"}
ELEMENT = re.compile(r"\b(float|double|__half|__nv_bfloat16)\b")
DEFINITION = re.compile(r"__global__.*?\b(\w+)\([^()]*(?:\(\w*\)[^()]*)*\)\s*\{", re.DOTALL)


def kernel_names() -> set[str]:
    """What the sources define as __global__."""
    names = set()
    for path in (ROOT / "csrc").glob("*/cuda/**/*.cu*"):
        text = re.sub(r"__launch_bounds__\([^()]*\)", "", path.read_text())
        found = DEFINITION.findall(text)
        assert len(found) == text.count("__global__"), path
        names.update(found)
    return names


def kernels(symbols: str, names: set[str]) -> dict[int, str]:
    """Address -> family::kernel<arguments>, from what `nm -C` says."""
    found = {}
    for line in symbols.splitlines():
        address, _, symbol = line.split(" ", 2)
        match = re.match(
            r"(?:void )?fastops::(\w+)::cuda::(?:\(anonymous namespace\)::)?(.*)", symbol
        )
        if not match or "::{lambda" in symbol or "[clone" in symbol:
            continue
        name = re.match(r"(\w+)(<.*>)?\(", match[2])
        if name and name[1] in names:
            found[int(address, 16)] = f"{match[1]}::{name[1]}{name[2] or ''}"
    return found


def with_element(kernel: str) -> str:
    """family::kernel and its element type; instantiations that differ otherwise count as one."""
    name, _, arguments = kernel.partition("<")
    element = ELEMENT.search(arguments)
    return f"{name}<{element[1]}>" if element else name


def missing(defined: dict[int, str], lines: list[str]) -> list[str]:
    """What has not run, from the lines `library address order async shared`."""
    ran = set()
    ways = collections.defaultdict(set)
    for line in lines:
        library, address, *how, _ = line.split()
        if library != LIBRARY + ".so":
            continue
        kernel = defined[int(address, 16)]
        ran.add(kernel)
        ways[with_element(kernel)].update(how)
    never = sorted(set(defined.values()) - ran)
    found = [f"{kernel} has not run" for kernel in never]
    for kernel, how in sorted(ways.items()):
        if lacking := ", ".join(sorted(WAYS - how)):
            found.append(f"{kernel} has not run {lacking}")
    return found


def outside_budget(
    defined: dict[int, str], lines: list[str], entries: list[dict[str, Any]]
) -> list[str]:
    """Patterns of budget.json whose launches did not keep to their dynamic shared memory."""
    asked = collections.defaultdict(set)
    for line in lines:
        library, address, *_, shared = line.split()
        if library != LIBRARY + ".so":
            continue
        name = re.sub(r"fastops::(\w+::)*", "", defined[int(address, 16)].partition("::")[2])
        asked[budgets.budget_of(name.replace(" >", ">"), entries)["kernel"]].add(int(shared))
    found = []
    for entry in entries:
        least, usual, most = budgets.dynamic(entry)
        seen = asked[entry["kernel"]]
        if seen and not (least <= min(seen) and usual in seen and max(seen) <= most):
            found.append(
                f"{entry['kernel']}: launches with {sorted(seen)} bytes of dynamic shared memory, "
                f"budget.json says {entry.get('dynamic', 0)}"
            )
    return found


def main() -> int:
    symbols = subprocess.run(
        ["nm", "-C", "--defined-only", library_path(LIBRARY)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    defined = kernels(symbols, kernel_names())
    lines = Path(sys.argv[1]).read_text().splitlines()
    found = missing(defined, lines)
    found += outside_budget(defined, lines, budgets.entries("budget.json"))
    print(*found, sep="\n", end="\n" if found else "")
    kinds = {with_element(k) for k in defined.values()}
    print(
        f"{len(defined)} kernels, {len(kinds)} counting each element type once: "
        + (f"{len(found)} gaps" if found else "all have run, in every order, late and early")
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
