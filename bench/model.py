"""python -m bench.model: what the CUDA kernels should reach, on GPUs that need not be here.

First how many blocks and threads of each kernel share an SM, from what ptxas and nvdisasm say of
libfastops_cuda (`make sass`). Then the least time of the benchmarks' cases: bytes, FLOP and special
functions against the datasheets of A100, H100 and H200. A family says what its cases need in
bench/<family>/model.py.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table

from .core.case import DTYPES, Case
from .core.roofline import GPUS, Gpu, Work, floor, occupancy
from .core.select import Density, Selection
from .core.table import make_console, seconds
from .families import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "fastops" / "_lib" / "libfastops_cuda"
TENSOR_BYTES = 512 << 20  # as on a GPU


def models() -> Iterator[tuple[ModuleType, ModuleType]]:
    """(family, its model) where it has one."""
    for family in FAMILIES:
        if find_spec(f"{family.__name__}.model"):
            yield family, import_module(f"{family.__name__}.model")


def floors(
    ops: Sequence[str] | None, dtypes: Sequence[str], density: Density
) -> Iterator[tuple[Case, Work]]:
    selection = Selection(
        device="cuda", threads=(0,), dtypes=tuple(dtypes), density=density,
        ops=frozenset(ops) if ops else None, tensor_bytes=TENSOR_BYTES,
    )  # fmt: skip
    for family, model in models():
        for case in family.cases(selection):
            if work := model.work(case):
                yield case, work


def kernels(gpu: Gpu, library: Path = LIBRARY) -> Iterator[tuple[str, int, int, int, int]]:
    """(pattern, registers, threads, shared bytes, instantiations) of the kernels for an
    architecture, the greatest of all instantiations that share a budget."""
    ptxas, sass = (
        json.loads(library.with_suffix(f".{kind}.json").read_text())[gpu.arch]
        for kind in ("ptxas", "sass")
    )
    left = dict(ptxas)
    for path in sorted((ROOT / "csrc").glob("*/cuda/budget.json")):
        for budget in json.loads(path.read_text()):
            names = fnmatch.filter(left, budget["kernel"])
            if not names:
                continue
            found = [(left.pop(name), sass[name]) for name in names]
            dynamic = budget.get("dynamic", 0)
            usual = dynamic["usual"] if isinstance(dynamic, dict) else dynamic
            yield (
                f"{path.parts[-3]} {budget['kernel']}",
                max(facts["registers"] for facts, _ in found),
                max(code["threads"] for _, code in found),
                max(facts["shared"] for facts, _ in found) + usual,
                len(found),
            )


def _print_occupancy(console: Console, gpu: Gpu) -> None:
    table = Table(title=f"Residency on {gpu.name} ({gpu.arch})", title_justify="left", box=None)
    for title in ("kernel", "variants", "registers", "threads", "shared", "blocks/SM", "of threads",
                  "limit"):  # fmt: skip
        table.add_column(title, justify="left" if title in ("kernel", "limit") else "right")
    for name, registers, threads, shared, count in kernels(gpu):
        blocks, limit = occupancy(registers, threads, shared, gpu)
        table.add_row(
            name.replace("[", r"\["), str(count), str(registers), str(threads),
            f"{shared / 1024:.1f} KB", str(blocks), f"{blocks * threads / gpu.threads_per_sm:.0%}",
            limit,
        )  # fmt: skip
    console.print(table)


def _print_floors(console: Console, found: Sequence[tuple[Case, Work]]) -> None:
    table = Table(title="Least times by datasheet", title_justify="left", box=None)
    for title in ("op", "case", "dtype", "MB", "GFLOP", "Gexp"):
        table.add_column(title, justify="left" if title in ("op", "case", "dtype") else "right")
    for gpu in GPUS:
        table.add_column(f"{gpu.name}, bound by", justify="right")
    for case, work in found:
        times = (floor(work, gpu) for gpu in GPUS)
        table.add_row(
            case.op, case.label, case.dtype, f"{work.bytes / 1e6:.1f}",
            f"{sum(work.flops.values()) / 1e9:.1f}", f"{work.special / 1e9:.2f}",
            *(f"{seconds(time)} {bound}" for time, bound in times),
        )  # fmt: skip
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.model", description=__doc__)
    parser.add_argument("--op", nargs="+", metavar="OP")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bf16", "fp32"])
    parser.add_argument("--all", action="store_true", help="every case of the benchmarks")
    args = parser.parse_args(argv)
    console = make_console()
    try:
        for gpu in {gpu.arch: gpu for gpu in GPUS}.values():
            _print_occupancy(console, gpu)
    except (OSError, KeyError) as error:
        console.print(f"No residency: {error} (make CUDA=on sass reads the built library)")
    density = Density.standard if args.all else Density.quick
    found = list(floors(args.op, args.dtype, density))
    _print_floors(console, found)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
