"""What a run prints: a row as soon as it is measured, then losses, bars and means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .bars import Verdict
from .case import PEER, Result, geomean

PLAIN_WIDTH = 140
MOST_LOSSES = 30
SPARE = ("±IQR", "floor", "GB/s", "error", f"{PEER}'s")  # left out on a narrow terminal
LEAST_TIE = 0.995  # what prints as 1.00× is a tie
NOT_RIVALS = ("copy", "softmax")  # yardsticks, not ways to do the job


def make_console() -> Console:
    """Colours and the terminal's width on a terminal; plain lines of a fixed width elsewhere."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def ratio(value: float | None) -> Text:
    if value is None:
        return Text("–", style="dim")
    return Text(
        f"{value:.2f}×", style="red" if value < LEAST_TIE else "green" if value >= 1.2 else ""
    )


def rivals(result: Result) -> list[str]:
    return [peer for peer in result.peers if peer not in NOT_RIVALS]


class Printer:
    """Prints results as they come, under a heading per suite and op, a progress bar below them."""

    def __init__(self, console: Console, peers: Sequence[str], total: int) -> None:
        self._console, self._asked = console, list(peers)
        self._peers: list[str] = []  # those that this section has
        self._section: tuple[str, str] | None = None
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            auto_refresh=False,  # a thread that draws would disturb what is timed
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Printer:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def begin(self, key: str) -> None:
        self._progress.update(self._task, description=key, refresh=True)

    def show(self, result: Result, suite: str) -> None:
        case = result.case
        if (case.op, case.suite) != self._section:
            self._section = (case.op, case.suite)
            self._peers = [p for p in self._asked if p in result.times or p in result.notes]
            self._console.print()
            self._console.print(Text(f"{case.op}: {suite}", style="bold"))
            self._console.print(self._row(None))
        self._console.print(self._row(result))
        self._progress.advance(self._task)

    def fail(self, key: str, why: str) -> None:
        self._console.print(Text(f"{key} failed: {why}", style="bold red"))
        self._progress.advance(self._task)

    def _row(self, result: Result | None) -> Table:
        """One line; every line has the same fixed columns, so that together they are a table."""
        columns = self._columns(result)
        grid = Table.grid(padding=(0, 1))
        for _, width, justify, _ in columns:
            grid.add_column(
                width=width, justify=justify, no_wrap=True, overflow="ellipsis",
                style="" if result else "dim",
            )  # fmt: skip
        grid.add_row(*(title if result is None else cell for title, _, _, cell in columns))
        return grid

    def _columns(self, r: Result | None) -> list[tuple]:
        """(title, width, justification, cell) of each column."""
        cpu = r is None or r.case.device == "cpu"
        columns = [
            ("shape", 32, "left", r and r.case.label),
            ("dtype", 5, "left", r and r.case.dtype),
            ("thr", 3, "right", str(r.case.threads) if r and cpu else "–"),
            ("time", 8, "right", r and seconds(r.ours.median)),
            ("±IQR", 5, "right", r and f"{r.ours.spread:.0%}"),
            ("floor", 8, "right", r and seconds(r.floor)),
            ("GB/s", 6, "right", r and f"{r.rate * 1e-9:.1f}"),
            ("roof", 5, "right", r and (f"{r.of_ceiling:.0%}" if r.ceiling else "cache")),
        ]
        columns += [(f"/{p}", 8, "right", r and ratio(r.speedup(p))) for p in self._peers]
        columns += [
            ("error", 8, "right", r and f"{r.accuracy.ours:.1e}"),
            (f"{PEER}'s", 8, "right", r and f"{r.accuracy.peer:.1e}"),
            ("", 2, "left", r and tick(r.accuracy.right)),
        ]
        if self._console.width < sum(width + 1 for _, width, _, _ in columns):
            columns = [column for column in columns if column[0] not in SPARE]
        return columns


def tick(good: bool) -> Text:
    return Text("✓", style="green") if good else Text("✗", style="bold red")


def losses(results: Sequence[Result]) -> list[tuple[float, str, Result]]:
    """(speed-up, peer, result) wherever a rival is faster, worst first."""
    found = [
        (value, peer, r)
        for r in results
        for peer in rivals(r)
        if (value := r.speedup(peer)) < LEAST_TIE
    ]
    return sorted(found, key=lambda loss: loss[0])


def means(results: Sequence[Result]) -> list[tuple[tuple[str, str, str], int, float, Result]]:
    """((op, suite, dtype and threads), cells, mean speed-up over torch, worst cell)."""
    groups: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for r in results:
        if PEER in r.times:
            threads = f" {r.case.threads}T" if r.case.device == "cpu" else ""
            groups[r.case.op, r.case.suite, r.case.dtype + threads].append(r)
    return [
        (key, len(rs), geomean([r.speedup() for r in rs]), min(rs, key=Result.speedup))
        for key, rs in groups.items()
    ]


def summarise(
    console: Console,
    results: Sequence[Result],
    verdicts: Sequence[Verdict],
    broken: Mapping[str, str] | None = None,
) -> None:
    """Failures, wrong results and losses first, then bars (missed first), then means."""
    console.print()
    if broken:
        console.print(Text(f"{len(broken)} cells FAILED:", style="bold red"))
        for key, why in broken.items():
            console.print(Text(f"  {key}: {why}", style="red"))
    wrong = [r for r in results if not r.accuracy.right]
    if wrong:
        console.print(Text(f"{len(wrong)} cells are WRONG:", style="bold red"))
        for r in wrong:
            console.print(
                f"  {r.case.key}: error {r.accuracy.ours:.1e}, torch {r.accuracy.peer:.1e}"
            )
    else:
        console.print(Text(f"All {len(results)} cells are right.", style="green"))
    _print_losses(console, results)
    if verdicts:
        _print_bars(console, verdicts)
    _print_means(console, results)
    _print_notes(console, results)


def _print_losses(console: Console, results: Sequence[Result]) -> None:
    lost = losses(results)
    if not lost:
        console.print(Text("No cell is slower than a peer.", style="green"))
        return
    console.print(
        Text(f"{len(lost)} of {len(results)} cells are slower than a peer:", style="bold red")
    )
    for value, peer, r in lost[:MOST_LOSSES]:
        console.print(Text(f"  {value:.2f}× {peer:8} {r.case.key}", style="red"))
    if len(lost) > MOST_LOSSES:
        console.print(Text(f"  and {len(lost) - MOST_LOSSES} more, less far behind", style="red"))


def _print_bars(console: Console, verdicts: Sequence[Verdict]) -> None:
    table = Table(box=SIMPLE_HEAD, title="Bars", title_justify="left", title_style="bold")
    for title, justify in (
        ("", "left"), ("bar", "left"), ("cells", "right"), ("mean", "right"), ("asked", "right"),
        ("worst", "right"), ("asked", "right"), ("worst cell", "left"),
    ):  # fmt: skip
        table.add_column(title, justify=justify)
    for v in verdicts:
        bar = v.bar
        sign, unit = "≤" if bar.at_most else "≥", bar.unit
        table.add_row(
            tick(v.met), bar.title, str(v.cells),
            f"{v.mean:.2f}{unit}" if v.mean is not None else "–", limit(bar.mean, sign, unit),
            f"{v.worst:.2f}{unit}", limit(bar.each, sign, unit), v.at.case.brief,
            style="" if v.met else "red",
        )  # fmt: skip
    console.print(table)


def limit(value: float | None, sign: str, unit: str) -> str:
    return "" if value is None else f"{sign} {value:g}{unit}"


def _print_means(console: Console, results: Sequence[Result]) -> None:
    table = Table(
        box=SIMPLE_HEAD, title=f"Speed-up over {PEER}, geometric means",
        title_justify="left", title_style="bold",
    )  # fmt: skip
    for title, justify in (
        ("op", "left"), ("suite", "left"), ("dtype", "left"), ("cells", "right"),
        ("mean", "right"), ("worst", "right"), ("worst cell", "left"),
    ):  # fmt: skip
        table.add_column(title, justify=justify)
    for key, count, mean, worst in means(results):
        table.add_row(*key, str(count), ratio(mean), ratio(worst.speedup()), worst.case.label)
    console.print(table)


def _print_notes(console: Console, results: Sequence[Result]) -> None:
    notes = defaultdict(int)
    for r in results:
        for peer, note in r.notes.items():
            notes[peer, note] += 1
    for (peer, note), count in notes.items():
        console.print(Text(f"{peer} in {count} cells: {note}", style="dim"))
