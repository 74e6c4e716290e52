"""python -m bench.tables: writes the tables of results in README.md and docs/*.md.

A table stands between `<!-- results: KIND FAMILY... -->` and `<!-- end of results -->` and is made
from bench/results/*/*.json alone; a device that has not been measured is in none. --check changes
nothing and exits with 1 where a table is not what the results say; a test runs it.

Kinds: `devices`, what was measured on; `means`, speed-ups over each peer by family; `ops`, the same
by op; `bars`, what was asked and what was measured. Without families: all of them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .core.bars import Verdict
from .core.case import PEER, Result, geomean
from .core.env import gpu_name
from .core.report import Run
from .core.results import FOLDER, device_run
from .core.table import limit, rivals
from .families import FAMILIES, name_of

ROOT = Path(__file__).resolve().parents[1]
BEGIN = re.compile(r"^<!-- results: (\w+)((?: \w+)*) -->$")
END = "<!-- end of results -->"
Table = list[Sequence[str]]  # a row of titles, then the others
Runs = dict[str, Run]


def runs(folder: Path = FOLDER) -> Runs:
    """Device -> all that was measured on it; devices without results left out."""
    found = {
        path.relative_to(folder).as_posix(): device_run(path) for path in sorted(folder.glob("**/"))
    }
    return {name: run for name, run in found.items() if run.results}


def machine_name(run: Run) -> str:
    m = run.machine
    return gpu_name(m) or re.sub(r"\(R\)| Processor", "", m["cpu"]) + f", {m['isa']}"


def devices(runs: Runs, families: Sequence) -> Table:
    rows: Table = [("device", "torch", "measured", "plain copy", "cells", "folder")]
    for name, run in runs.items():
        copies = [
            f"{rate * 1e-9:.0f} GB/s" + (f" on {n} thread{'s' * (n > 1)}" if n else "")
            for n, rate in sorted(run.ceilings.copy.items())
        ]
        rows.append((
            machine_name(run), run.machine["torch"], run.machine["date"].split()[0],
            ", ".join(copies), str(len(run.results)), f"`bench/results/{name}`",
        ))  # fmt: skip
    return rows


def _speedups(results: Iterable[Result]) -> tuple[str, str]:
    """Cells and mean over torch with the worst, and means over the other peers."""
    results = [r for r in results if PEER in r.times]
    values = [r.speedup() for r in results]
    others: dict[str, list[float]] = {}
    for r in results:
        for peer in rivals(r):
            if peer != PEER:
                others.setdefault(peer, []).append(r.speedup(peer))
    told = ", ".join(f"{peer} {geomean(v):.2f}×" for peer, v in others.items())
    return f"{geomean(values):.2f}× ({min(values):.2f}×)" if values else "–", told or "–"


def _threads(run: Run) -> list[int]:
    return sorted({r.case.threads for r in run.results})


def _rows(runs: Runs, keys: Callable[[Result], str | None], title: str) -> Table:
    rows: Table = [("device", title, "threads", "cells", "over torch: mean (worst)", "over others")]
    for run in runs.values():
        for key in dict.fromkeys(k for r in run.results if (k := keys(r))):
            for threads in _threads(run):
                some = [r for r in run.results if keys(r) == key and r.case.threads == threads]
                if some:
                    count = str(threads) if threads else "–"
                    rows.append((machine_name(run), key, count, str(len(some)), *_speedups(some)))
    return rows


def means(runs: Runs, families: Sequence) -> Table:
    family_of = {op: name_of(family) for family in families for op in family.OPS}
    return _rows(runs, lambda r: family_of.get(r.case.op), "family")


def ops(runs: Runs, families: Sequence) -> Table:
    wanted = {op for family in families for op in family.OPS}
    return _rows(runs, lambda r: r.case.op if r.case.op in wanted else None, "op")


def _measured(verdict: Verdict | None) -> str:
    if verdict is None:
        return "–"
    bar, said = verdict.bar, []
    if bar.mean is not None:
        said.append("–" if verdict.mean is None else f"mean {verdict.mean:.2f}{bar.unit}")
    if bar.each is not None:
        said.append(f"{'most' if bar.at_most else 'least'} {verdict.worst:.2f}{bar.unit}")
    return ", ".join(said) + ("" if verdict.met else " **missed**")


def bars(runs: Runs, families: Sequence) -> Table:
    """Devices that something asked for was measured on are columns."""
    every = [bar for family in families for bar in family.BARS]
    columns = [
        (run, [bar.judge(run.results, run.machine) for bar in every]) for run in runs.values()
    ]
    columns = [(run, verdicts) for run, verdicts in columns if any(verdicts)]
    rows: Table = [("", "asked", *(machine_name(run) for run, _ in columns))]
    for i, bar in enumerate(every):
        if any(verdicts[i] for _, verdicts in columns):
            sign = "≤" if bar.at_most else "≥"
            asked = [f"mean {limit(bar.mean, sign, bar.unit)}"] if bar.mean is not None else []
            asked += [f"each {limit(bar.each, sign, bar.unit)}"] if bar.each is not None else []
            cells = (_measured(verdicts[i]) for _, verdicts in columns)
            rows.append((re.sub("^ +", "… ", bar.title), ", ".join(asked), *cells))
    return rows


KINDS = {"devices": devices, "means": means, "ops": ops, "bars": bars}


def render(table: Table) -> list[str]:
    if len(table) == 1:
        return ["*Nothing has been measured.*"]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return [lines[0], "|" + "---|" * len(table[0]), *lines[1:]]


def rewrite(text: str, runs: Runs) -> str:
    """The text with every table made anew."""
    lines, out = text.splitlines(), []
    at = 0
    while at < len(lines):
        out.append(lines[at])
        if match := BEGIN.match(lines[at]):
            kind, names = match[1], match[2].split()
            known = {name_of(family): family for family in FAMILIES}
            if kind not in KINDS or not set(names) <= set(known):
                raise ValueError(f"cannot read {lines[at]}")
            if END not in lines[at:]:
                raise ValueError(f"{lines[at]} has no end")
            at = lines.index(END, at)
            table = KINDS[kind](runs, [known[name] for name in names] or FAMILIES)
            out += ["", *render(table), "", END]
        at += 1
    return "\n".join(out) + "\n"


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing, exit 1 if not current"
    )
    args = parser.parse_args(argv)
    found, old = runs(), []
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = rewrite(before, found)
        if after != before:
            old.append(page.relative_to(ROOT).as_posix())
            if not args.check:
                page.write_text(after, encoding="utf-8")
    if old:
        print(f"{'not current, run `make tables`' if args.check else 'wrote'}: {', '.join(old)}")
    return 1 if old and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
