"""python -m bench.compare old.json new.json: what got slower, beyond noise. Exit 1 if anything did.

Where both files timed the same peer on a case, its change is taken out: a machine that is slower
today is slower for the peer too. A result that has become wrong fails as well; a case that is gone
is named. Either may be a device's folder of results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from pathlib import Path

from rich.table import Table
from rich.text import Text

from .core.case import OURS, PEER, Result, geomean
from .core.report import Run, read_json
from .core.results import device_run
from .core.table import make_console, seconds


@dataclass(frozen=True)
class Change:
    key: str
    old: float  # seconds
    new: float
    factor: float  # new over old, the peer's own change taken out
    noise: float  # what the quartiles of all four medians explain, relative

    def beyond(self, tolerance: float) -> bool:
        return abs(self.factor - 1) > max(tolerance, self.noise)


def change(old: Result, new: Result, absolute: bool) -> Change:
    """How the time of one case changed."""
    times = [old.ours, new.ours]
    factor = new.ours.median / old.ours.median
    if not absolute and PEER in old.times and PEER in new.times:
        times += [old.times[PEER], new.times[PEER]]
        factor *= old.times[PEER].median / new.times[PEER].median
    # Half an interquartile range stands for one deviation; independent ones add in quadrature.
    noise = hypot(*(t.spread / 2 for t in times))
    return Change(new.case.key, old.ours.median, new.ours.median, factor, noise)


def changes(old: Run, new: Run, absolute: bool = False) -> list[Change]:
    """Cases in both runs, slowest change first."""
    before = {r.case.key: r for r in old.results}
    both = [change(before[r.case.key], r, absolute) for r in new.results if r.case.key in before]
    return sorted(both, key=lambda c: -c.factor)


def newly_wrong(old: Run, new: Run) -> list[str]:
    """Cases whose result was right, or was not there, and is wrong."""
    before = {r.case.key for r in old.results if not r.accuracy.right}
    return [r.case.key for r in new.results if not r.accuracy.right and r.case.key not in before]


def gone(old: Run, new: Run) -> list[str]:
    now = {r.case.key for r in new.results}
    return [r.case.key for r in old.results if r.case.key not in now]


def read(path: str) -> Run:
    return device_run(Path(path)) if Path(path).is_dir() else read_json(path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--tolerance", type=float, default=0.05, metavar="X",
                        help="relative change that is never reported (default: 0.05)")  # fmt: skip
    parser.add_argument("--absolute", action="store_true",
                        help=f"compare times of {OURS} alone, not relative to {PEER}")  # fmt: skip
    args = parser.parse_args(argv)
    console = make_console()
    old, new = read(args.old), read(args.new)
    if old.title != new.title:
        console.print(f"[yellow]Different machines or versions:\n  {old.title}\n  {new.title}")
    wrong, lost = newly_wrong(old, new), gone(old, new)
    for title, keys in (("WRONG now", wrong), ("gone", lost)):
        if keys:
            style = "bold red" if keys is wrong else "yellow"
            console.print(Text("\n  ".join([f"{len(keys)} {title}:", *keys]), style=style))
    found = changes(old, new, args.absolute)
    if not found:
        console.print("No case is in both.")
        return 2
    slower = [c for c in found if c.factor > 1 and c.beyond(args.tolerance)]
    faster = [c for c in reversed(found) if c.factor < 1 and c.beyond(args.tolerance)]
    for title, some, style in (("slower", slower, "red"), ("faster", faster, "green")):
        if some:
            table = Table(title=f"{len(some)} {title}", title_justify="left", style=style, box=None)
            for heading in ("change", "noise", "old", "new", "case"):
                table.add_column(heading, justify="left" if heading == "case" else "right")
            for c in some:
                table.add_row(
                    f"{c.factor:.2f}×", f"±{c.noise:.0%}", seconds(c.old), seconds(c.new), c.key
                )
            console.print(table)
    mean = geomean([c.factor for c in found])
    console.print(f"{len(found)} cases in both, {len(slower)} slower, {len(faster)} faster; "
                  f"mean change {mean:.3f}×")  # fmt: skip
    return 1 if slower or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
