"""Results as files: JSON to keep and compare, CSV for a spreadsheet, one HTML page to read."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .bars import Verdict
from .case import PEER, Result
from .ceilings import Ceilings
from .env import headline
from .table import limit, losses, means, rivals, seconds

SCHEMA = 1


@dataclass
class Run:
    """Everything one run of the harness found out."""

    machine: dict[str, Any]
    ceilings: Ceilings
    results: list[Result]
    verdicts: list[Verdict] = field(default_factory=list)  # not kept in files: the bars may change

    @property
    def title(self) -> str:
        return headline(self.machine)


def write_json(path: str | Path, run: Run) -> None:
    """Times are seconds, rates bytes and FLOP per second. A line per result, for readable diffs."""
    head = {"schema": SCHEMA, "machine": run.machine, "ceilings": asdict(run.ceilings)}
    lines = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}," for k, v in head.items()]
    results = ",\n".join(json.dumps(r.to_dict(), ensure_ascii=False) for r in run.results)
    _write(path, "\n".join(["{", *lines, '"results": [', results, "]", "}", ""]))


def read_json(path: str | Path) -> Run:
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    if data.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA}, got {data.get('schema')}")
    ceilings = data["ceilings"]
    copy = {int(threads): rate for threads, rate in ceilings["copy"].items()}
    return Run(
        data["machine"],
        Ceilings(copy, ceilings["matmul"], ceilings["how"]),
        [Result.from_dict(result) for result in data["results"]],
    )


def write_csv(path: str | Path, run: Run) -> None:
    peers = list(dict.fromkeys(peer for r in run.results for peer in r.peers))
    fields = ["op", "suite", "dtype", "device", "threads", "shape", "dim", "variant",
              "us", "iqr_us", "gb_s", "of_ceiling", "error", "torch_error", "right"]  # fmt: skip
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*fields, *(f"{peer}_us" for peer in peers)])
        for r in run.results:
            c = r.case
            writer.writerow([
                c.op, c.suite, c.dtype, c.device, c.threads, "x".join(map(str, c.shape)), c.dim,
                c.variant, r.ours.median * 1e6, r.ours.iqr * 1e6, r.rate * 1e-9, r.of_ceiling,
                r.accuracy.ours, r.accuracy.peer, r.accuracy.right,
                *(r.times[peer].median * 1e6 if peer in r.times else None for peer in peers),
            ])  # fmt: skip


def write_html(
    path: str | Path, run: Run, steps: Sequence = (), missing: Mapping[str, str] | None = None
) -> None:
    """One file without outside references: figures are inline SVG. `steps` are outcomes of
    bench.gpu, `missing` says what could not be used and why."""
    from jinja2 import Environment, FileSystemLoader

    from . import plots

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters["seconds"] = seconds
    page = templates.get_template("report.html.j2").render(
        run=run,
        steps=steps,
        missing=missing or {},
        losses=losses(run.results),
        means=means(run.results),
        wrong=[r for r in run.results if not r.accuracy.right],
        peers=list(dict.fromkeys(peer for r in run.results for peer in r.peers)),
        rivals=rivals,
        limit=limit,
        peer=PEER,
        figures=[plots.svg(figure) for figure in plots.report_figures(run)],
    )
    _write(path, page)


def write_png(path: str | Path, run: Run) -> None:
    """The summary picture."""
    from . import plots

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    plots.summary(run).savefig(path, dpi=150)


def write_speedups(path: str | Path, run: Run) -> None:
    """Mean speed-ups over every peer, by op."""
    from . import plots

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    plots.speedups(run).savefig(path, dpi=150)


def _write(path: str | Path, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
