"""From the results of a device to what is published: one HTML page, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core import results
from ..core.bars import judge
from ..core.report import write_html, write_png, write_speedups
from ..families import FAMILIES
from .runner import Outcome


def publish(
    folder: Path, outcomes: Sequence[Outcome], missing: dict[str, str], machine: dict
) -> list[Path]:
    """Writes report.html and the pictures from what lies in the device's folder; what was written.

    Without any measurement it is a page of outcomes alone, on the given machine.
    """
    run = results.device_run(folder)
    run.machine = run.machine or machine
    if run.results:
        run.verdicts = judge([bar for family in FAMILIES for bar in family.BARS], run.results)
    written = [folder / "report.html"]
    write_html(written[0], run, steps=outcomes, missing=missing)
    if run.results:
        written += [folder / "speedups.png"]
        write_speedups(written[-1], run)
    if any(r.case.suite == "sweep" for r in run.results):
        written += [folder / "summary.png"]
        write_png(written[-1], run)
    return written
