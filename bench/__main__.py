"""python -m bench: measure the kernels against what people use today.

Before anything the machine's own ceilings are measured; then every case is timed with its peers in
the same loop, checked against float64, and printed as soon as it is done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

try:
    from rich.console import Console
except ImportError:
    sys.exit(
        "python -m bench needs rich, matplotlib and jinja2: pip install rich matplotlib jinja2"
    )

import torch

from .core import env, report
from .core.bars import judge
from .core.case import DTYPES, OURS, PEER, Accuracy, Case, Result, Workload
from .core.ceilings import Ceilings, measure_ceilings
from .core.pool import Pool
from .core.select import Density, Selection
from .core.table import Printer, make_console, summarise
from .core.timing import Effort, measure
from .families import FAMILIES
from .peers import registry

EFFORT = {
    Density.quick: Effort(0.15, min_rounds=5),
    Density.overview: Effort(0.3),
    Density.standard: Effort(0.4),
    Density.full: Effort(0.8, min_rounds=11),
}
WRITERS = {
    "json": report.write_json,
    "csv": report.write_csv,
    "html": report.write_html,
    "png": report.write_png,
}
TENSOR_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    all_ops = [op for family in FAMILIES for op in family.OPS]
    all_suites = list(dict.fromkeys(suite for family in FAMILIES for suite in family.SUITES))
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--op", nargs="+", choices=all_ops, metavar="OP", help=f"one of {', '.join(all_ops)}")
    add("--dtype", nargs="+", choices=DTYPES, default=["fp32", "bf16", "fp16"])
    add(
        "--shapes",
        nargs="+",
        choices=[*all_suites, "all"],
        metavar="SUITE",
        help=f"whole suites: {', '.join(all_suites)}; all of them with `all` (long). "
        "Default: a choice from each, in about two minutes, or with --op or --check what the bars "
        "are about",
    )
    add("--device", choices=["cpu", "cuda"], help="default: cuda where there is a GPU")
    add("--threads", nargs="+", type=int, metavar="T", help="CPU thread counts (default: 1 2)")
    add(
        "--baseline",
        nargs="+",
        choices=registry.PEERS,
        metavar="PEER",
        help=f"peers besides torch: {', '.join(list(registry.PEERS)[1:])} "
        "(default: what takes no compiling on a CPU, all on a GPU)",
    )
    add("--quick", action="store_true", help="a taste in half a minute")
    add("--check", action="store_true", help="exit 1 when a result is wrong or a bar is missed")
    add("--seconds", type=float, metavar="S", help="time for each case")
    add("--json", metavar="F", help="results with the machine's description, for bench.compare")
    add("--keep", action="store_true", help="measure only what the --json file does not have yet")
    add("--csv", metavar="F", help="results for a spreadsheet")
    add("--html", metavar="F", help="a self-contained report")
    add("--png", metavar="F", help="the summary picture")
    add("--list", action="store_true", help="list cases and peers, measure nothing")
    add(
        "--tensor-mb",
        type=float,
        metavar="MB",
        help="size of the large tensors; small ones test the harness, not the kernels",
    )
    return parser.parse_args(argv)


def select(args: argparse.Namespace) -> Selection:
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not (args.list or torch.cuda.is_available()):
        sys.exit("python -m bench: --device cuda, but torch sees no GPU")
    cores = env.cores()
    threads = tuple(args.threads or [t for t in (1, 2) if t <= cores])
    size = args.tensor_mb * (1 << 20) if args.tensor_mb else TENSOR_BYTES[device]
    return Selection(
        device=device,
        threads=threads if device == "cpu" else (0,),
        dtypes=tuple(args.dtype),
        density=_density(args),
        ops=frozenset(args.op) if args.op else None,
        suites=frozenset(args.shapes) if args.shapes and "all" not in args.shapes else None,
        peers=tuple(dict.fromkeys(["torch", *(args.baseline or registry.defaults(device))])),
        tensor_bytes=int(size),
    )


def _density(args: argparse.Namespace) -> Density:
    if args.quick:
        return Density.quick
    if args.shapes:
        return Density.full
    return Density.standard if args.op or args.check else Density.overview


class Runner:
    """Measures cases one by one, on one pool of buffers."""

    def __init__(self, selection: Selection, effort: Effort) -> None:
        self.selection, self.effort = selection, effort
        self.pool = Pool(selection.device, selection.tensor_bytes)
        self._accuracy: dict[tuple, Accuracy] = {}

    def ceilings(self) -> Ceilings:
        s = self.selection
        return measure_ceilings(s.device, list(s.threads), self.pool, Effort(0.3, min_rounds=11))

    def run(self, family: ModuleType, case: Case, ceilings: Ceilings, effort: Effort) -> Result:
        if case.device == "cpu":
            torch.set_num_threads(case.threads)
        work = family.prepare(case, self.pool, self.selection.peers)
        _drop_failing_peers(work)
        device = "cpu" if work.host else case.device
        times = measure(work.calls, device, effort, cold=not case.warm)
        same = (case.op, case.dtype, case.shape, case.dim, case.variant)
        if same not in self._accuracy:  # results do not depend on the thread count
            self._accuracy[same] = work.verify()
        ceiling = None if case.warm else ceilings.copy[case.threads]
        return Result(case, times, work.traffic, self._accuracy[same], ceiling, work.notes)


def _drop_failing_peers(work: Workload) -> None:
    """A peer that cannot do a case is named and left out; ours and torch must do every one."""
    for peer in [name for name in work.calls if name not in (OURS, PEER)]:
        try:
            work.calls[peer][0]()
        except Exception as error:
            del work.calls[peer]
            work.notes[peer] = f"failed: {_first_line(error)}"


def kept(args: argparse.Namespace) -> list[Result]:
    """What --keep finds in the file of an earlier run."""
    if args.keep and args.json and Path(args.json).exists():
        return report.read_json(args.json).results
    return []


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    selection = select(args)
    console = make_console()
    todo = [(family, case) for family in FAMILIES for case in family.cases(selection)]
    if args.list:
        for _, case in todo:
            console.print(case.key)
        for name, what in registry.PEERS.items():
            console.print(f"peer {name}: {what}")
        return 0

    env.keep_freed_memory()
    machine = env.describe(selection.device)
    machine["options"] = {k: v for k, v in vars(args).items() if v and k not in WRITERS}
    console.print(env.headline(machine))
    if (machine["load"] or 0) > 0.5:
        console.print(f"[yellow]The machine is busy (load {machine['load']}): expect noise.")
    peers = _present_peers(console, selection.peers, selection.device)
    selection = replace(selection, peers=peers)
    effort = EFFORT[selection.density]
    if args.seconds:
        effort = Effort(args.seconds, effort.min_rounds)
    runner = Runner(selection, effort)
    ceilings = runner.ceilings()
    for threads, rate in ceilings.copy.items():
        where = f", {threads} thread{'s' * (threads > 1)}" if threads else ""
        console.print(f"roof: {ceilings.how}{where}: {rate * 1e-9:.1f} GB/s")
    for dtype, rate in ceilings.matmul.items():
        console.print(f"matmul {dtype}: {rate * 1e-12:.0f} TFLOP/s")

    results = kept(args)
    measured = {r.case.key for r in results}
    todo = [(family, case) for family, case in todo if case.key not in measured]
    wanted = len(results) + len(todo)
    broken: dict[str, str] = {}
    try:
        with Printer(console, selection.peers, len(todo)) as printer:
            for family, case in todo:
                printer.begin(case.key)
                try:
                    results.append(runner.run(family, case, ceilings, effort))
                except Exception as error:  # a case that fails does not take the others with it
                    broken[case.key] = _first_line(error)
                    printer.fail(case.key, broken[case.key])
                    continue
                printer.show(results[-1], family.SUITES[case.suite])
                if args.json:  # whatever ends this run, what has been measured is kept
                    report.write_json(args.json, report.Run(machine, ceilings, results))
    except KeyboardInterrupt:
        console.print(f"\nInterrupted after {len(results)} of {wanted} cases.", style="yellow")

    bars = [bar for family in FAMILIES for bar in family.BARS]
    verdicts = judge(bars, results, machine) if _bars_apply(selection, machine) else []
    summarise(console, results, verdicts, broken)
    run = report.Run(machine, ceilings, results, verdicts)
    for kind, write in WRITERS.items():
        if path := getattr(args, kind):
            write(path, run)
            console.print(f"wrote {path}")
    if len(results) < wanted:
        return 1
    good = all(r.accuracy.right for r in results) and all(v.met for v in verdicts)
    return 1 if args.check and not good else 0


def _bars_apply(selection: Selection, machine: dict) -> bool:
    """The bars are for full-size tensors, and on a CPU for AVX-512."""
    if selection.tensor_bytes < TENSOR_BYTES[selection.device]:
        return False
    return selection.device == "cuda" or machine["isa"] == "avx512"


def _present_peers(console: Console, asked: Sequence[str], device: str) -> tuple[str, ...]:
    """The asked peers that can run here; names the others, and those not asked for."""
    missing = registry.missing(device)
    for name in registry.PEERS:
        if why := missing.get(name):
            console.print(f"[dim]peer {name} is missing: {why}")
        elif name not in asked:
            console.print(f"[dim]peer {name} was not asked for (--baseline {name})")
    return tuple(name for name in asked if not missing.get(name))


if __name__ == "__main__":
    sys.exit(main())
