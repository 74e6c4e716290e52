"""Which machine instructions each kernel of libfastops_cuda has: `sass_report.py LIBRARY.so`.

Counts the instructions that budgets speak of (CLASSES) with nvdisasm, and reads the launch bound,
into LIBRARY.sass.json: `{architecture: {kernel: {threads, total, <class>...}}}`, classes that do
not occur left out. One count is of order: exponentials between a wait that leaves wgmma in flight
and the next wait. Where setmaxnreg hands registers from warps to others, `registers` is the most
that one of them uses: ptxas reports those of the launch. What has been read once is kept by content
in `build/sass`, so that a second run costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ptxas_report import demangle

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "sass"
# Names as in budget.json; an instruction counts for every class that it matches.
CLASSES = {
    "HMMA": r"HMMA\.(?!SP)",  # dense tensor cores, a warp
    "HMMA.SP": r"HMMA\.SP",
    "HGMMA": r"HGMMA\.(?!SP)",  # a warpgroup
    "HGMMA.SP": r"HGMMA\.SP",
    "WARPGROUP": r"WARPGROUP\.",  # many of them in a loop: wgmma has been serialised
    "LDSM": r"LDSM",
    "STSM": r"STSM",  # stmatrix
    "LDGSTS": r"LDGSTS",  # cp.async
    "UTMALDG": r"UTMALDG",  # TMA
    "UTMASTG": r"UTMASTG",
    "UBLKCP": r"UBLKCP",  # bulk copy
    "SYNCS": r"SYNCS",  # mbarriers
    "USETMAXREG": r"USETMAXREG",  # setmaxnreg
    "CCTL": r"CCTL",  # L1 emptied: by an acquire beyond the block
    "LDG.128": r"LDG\.(\w+\.)*128",
    "STG.128": r"STG\.(\w+\.)*128",
    "LDS.128": r"LDS\.(\w+\.)*128",
    "STS.128": r"STS\.(\w+\.)*128",
    "MUFU.EX2": r"MUFU\.EX2",
    "LOCAL": r"(LDL|STL)\b",
    "CALL": r"CALL\b",
    "FLOAT_ATOMIC": r"(RED|REDG|ATOM|ATOMG|ATOMS)\b\S*\.(F16|F32|F64|BF16)",
}
PATTERNS = {name: re.compile(pattern) for name, pattern in CLASSES.items()}
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
WAIT = re.compile(r".*\bWARPGROUP\.DEPBAR\S*\s+gsb\d+, 0x([0-9a-f]+)")
# One register, or the first of several in a row; the others of these are named where they are used.
REGISTER = re.compile(r"\bR(\d+)\b")
# Exponentials that stand where a wait has left products of a warpgroup in flight.
OVERLAPPED = "MUFU.EX2 during HGMMA"
# What a kept reading depends on.
VERSION = f"3 {CLASSES} {INSTRUCTION.pattern} {WAIT.pattern} {REGISTER.pattern}"


def find(tool: str) -> str | None:
    """On PATH, beside nvcc, or from PyPI: of NVIDIA's package or of Triton's."""
    site = Path(sysconfig.get_path("purelib"))
    places = [
        *(str(path.parent) for path in sorted(site.glob("nvidia/cu[0-9]*/bin/nvdisasm"))),
        str(site / "triton/backends/nvidia/bin"),
        "/usr/local/cuda/bin",
    ]
    if nvcc := os.environ.get("CUDACXX"):
        places.insert(0, str(Path(nvcc).resolve().parent))
    return shutil.which(tool) or shutil.which(tool, path=os.pathsep.join(places))


def count(lines: Iterable[str]) -> dict[str, dict[str, int]]:
    """Classes and total by mangled name, from what nvdisasm prints."""
    # Few spellings make up the code: each is matched against the classes once.
    spellings: dict[str, Counter] = {}
    registers: dict[str, int] = {}
    kernel, current = "", Counter()
    in_flight = False
    for line in lines:
        if line.startswith(".text."):
            kernel = line.rstrip().removeprefix(".text.").removesuffix(":")
            current = spellings[kernel] = Counter()
            in_flight = False
        elif match := INSTRUCTION.match(line):
            current[match[1]] += 1
            if match[1].startswith("USETMAXREG"):
                registers.setdefault(kernel, 0)
            if kernel in registers:
                named = (int(number) + 1 for number in REGISTER.findall(line))
                registers[kernel] = max(registers[kernel], *named, 0)
            if match[1].startswith("WARPGROUP.DEPBAR") and (wait := WAIT.match(line)):
                in_flight = int(wait[1], 16) > 0
            elif in_flight and match[1].startswith("MUFU.EX2"):
                current[OVERLAPPED] += 1
    facts = {kernel: classify(found) for kernel, found in spellings.items()}
    for kernel, most in registers.items():
        facts[kernel]["registers"] = most
    return facts


def classify(spellings: Counter) -> dict[str, int]:
    overlapped = spellings.pop(OVERLAPPED, 0)
    totals = Counter(total=spellings.total())
    if overlapped:
        totals[OVERLAPPED] = overlapped
    for spelling, times in spellings.items():
        for name, pattern in PATTERNS.items():
            if pattern.match(spelling):
                totals[name] += times
    return dict(totals)


MAX_THREADS, REQUIRED_THREADS = 0x05, 0x10  # attributes of .nv.info
UNBOUNDED = 1024  # threads, where a kernel does not say
SIZED = 0x04  # an attribute of any length; the others take four bytes


def launch_bounds(cubin: bytes) -> dict[str, int]:
    """The most threads of a block by mangled name, from the .nv.info section of each kernel."""
    (offset,) = struct.unpack_from("<Q", cubin, 0x28)
    entry, number, names_at = struct.unpack_from("<3H", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, offset + entry * i) for i in range(number)]
    names_offset = sections[names_at][4]
    bounds = {}
    for section in sections:
        at = names_offset + section[0]
        name = cubin[at : cubin.index(b"\0", at)].decode()
        if not name.startswith(".nv.info."):
            continue
        kernel = name.removeprefix(".nv.info.")
        bounds[kernel] = UNBOUNDED
        here, end = section[4], section[4] + section[5]
        while here < end:
            kind, attribute, size = struct.unpack_from("<BBH", cubin, here)
            if attribute in (MAX_THREADS, REQUIRED_THREADS) and kind == SIZED:
                x, y, z = struct.unpack_from("<3I", cubin, here + 4)
                bounds[kernel] = x * y * z
            here += 4 + (size if kind == SIZED else 0)
    return bounds


def read(cubin: Path, nvdisasm: str) -> dict[str, dict[str, int]]:
    """Facts of each kernel of a cubin, by mangled name."""
    data = cubin.read_bytes()
    kept = CACHE / f"{hashlib.sha256(VERSION.encode() + data).hexdigest()[:32]}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    command = [nvdisasm, "-ndf", "-c", str(cubin)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        counts = count(run.stdout)
    if run.returncode:
        sys.exit(f"nvdisasm failed on {cubin.name}")
    bounds = launch_bounds(data)
    facts = {k: {"threads": bounds[k], **v} for k, v in counts.items() if k in bounds}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(facts))
    return facts


def report(library: Path, cuobjdump: str, nvdisasm: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [cuobjdump, "-xelf", "all", str(library.resolve())],
            cwd=folder, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        cubins = sorted(Path(folder).glob("*.cubin"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            tables = list(pool.map(lambda path: read(path, nvdisasm), cubins))
    result: dict[str, dict[str, dict[str, int]]] = {}
    for cubin, facts in zip(cubins, tables, strict=True):
        names = demangle(list(facts))
        result.setdefault(cubin.stem.split(".")[-1], {}).update(
            zip(names, facts.values(), strict=True)
        )
    return result


def main() -> None:
    library = Path(sys.argv[1])
    output = library.with_suffix(".sass.json")
    tools = [find("cuobjdump"), find("nvdisasm")]
    if None in tools or not library.exists():
        output.unlink(missing_ok=True)  # what it says of another library would mislead
        missing = library.name if not library.exists() else "cuobjdump or nvdisasm"
        print(f"sass_report: left out, there is no {missing}", file=sys.stderr)
        return
    found = report(library, *tools)
    output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
