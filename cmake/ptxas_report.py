"""What ptxas says of each kernel: registers, spills, stack, shared memory.

    ptxas_report.py compile NVCC ARGS...          run nvcc (with -Xptxas=-v), keep what ptxas says
                                                  beside the object file, pass on everything else
    ptxas_report.py merge OUTPUT.json OBJECT...   join the reports of the objects of one library

CMake runs the first as the launcher of the CUDA compiler and the second after linking. The result
lies beside the library: `{architecture: {kernel: {registers, stack, spill_stores, spill_loads,
shared, advice}}}`: `advice` lists the codes of ptxas' remarks (C75..) on wgmma and setmaxnreg.
One that names no kernel is held against every kernel of its file.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
# Remarks on setmaxnreg name no function.
ADVICE = re.compile(r"\((C75\d\d)\).*?(?:function '(\w+)')?\s*$")
CHATTER = ("ptxas info", "    ")


def parse(lines: list[str]) -> list[dict[str, Any]]:
    """One record per kernel and architecture from the output of `ptxas -v`."""
    records: list[dict[str, Any]] = []
    advice: dict[str | None, set[str]] = {}
    for line in lines:
        if match := ADVICE.search(line):
            advice.setdefault(match[2], set()).add(match[1])
        elif match := ENTRY.search(line):
            records.append({"kernel": match[1], "arch": match[2]})
        elif not records:
            continue
        elif match := STACK.search(line):
            stack, stores, loads = map(int, match.groups())
            records[-1] |= {"stack": stack, "spill_stores": stores, "spill_loads": loads}
        elif match := USED.search(line):
            shared = SHARED.search(line)
            records[-1] |= {"registers": int(match[1]), "shared": int(shared[1]) if shared else 0}
    for record in records:
        if told := advice.get(record["kernel"], set()) | advice.get(None, set()):
            record["advice"] = sorted(told)
    return [r for r in records if "registers" in r]


def demangle(names: list[str]) -> list[str]:
    """Kernel names as the source has them, without namespaces and parameters."""
    if shutil.which("c++filt") is None:
        return names
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    plain = [re.sub(r"\([\w:]+\)(?=\d)|fastops::(\w+::)*", "", line) for line in text.splitlines()]
    return [line.split("(")[0].removeprefix("void ").replace(" >", ">") for line in plain]


def compile_one(command: list[str]) -> int:
    """Run the compiler; 0 or its exit status."""
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    lines = run.stderr.splitlines()
    other = [line for line in lines if not line.startswith(CHATTER)]
    if run.returncode != 0:
        other = lines
    if other:
        print(*other, sep="\n", file=sys.stderr)
    if run.returncode == 0 and "-c" in command and "-o" in command:
        target = Path(command[command.index("-o") + 1])
        target.with_suffix(".ptxas.json").write_text(json.dumps(parse(lines)))
    return run.returncode


def merge(output: Path, objects: list[Path]) -> None:
    """Write the library's report."""
    records = []
    for path in objects:
        report = path.with_suffix(".ptxas.json")
        if report.exists():
            records += json.loads(report.read_text())
    names = demangle([r["kernel"] for r in records])
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for name, record in zip(names, records, strict=True):
        facts = {k: v for k, v in record.items() if k not in ("kernel", "arch")}
        kernels = result.setdefault(record["arch"], {})
        if name in kernels:
            sys.exit(f"two kernels are called {name}: budgets could not tell them apart")
        kernels[name] = facts
    output.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        sys.exit(compile_one(sys.argv[2:]))
    merge(Path(sys.argv[2]), [Path(p) for p in sys.argv[3:]])
