"""From the results of a device to what is published: one HTML page, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core import results
from ..core.bars import judge
from ..core.report import Run, write_html, write_png, write_speedups
from ..families import FAMILIES
from .runner import Outcome
from .steps import HOPPER, HOPPER_FOLDER


def publish(
    folder: Path, outcomes: Sequence[Outcome], missing: dict[str, str], machine: dict
) -> list[Path]:
    """Writes report.html and the pictures from what lies in the device's folder, and the same of
    what was measured again with the kernels for Hopper, in its own folder; what was written.

    Without any measurement it is a page of outcomes alone, on the given machine.
    """
    again = [outcome for outcome in outcomes if outcome.name.endswith(HOPPER)]
    written = _publish(folder, results.device_run(folder), outcomes, missing, machine)
    hopper = results.device_run(folder / HOPPER_FOLDER)
    if hopper.results:
        written += _publish(folder / HOPPER_FOLDER, hopper, again, missing, machine)
    return written


def _publish(
    folder: Path, run: Run, outcomes: Sequence[Outcome], missing: dict[str, str], machine: dict
) -> list[Path]:
    run.machine = run.machine or machine
    if run.results:
        bars = [bar for family in FAMILIES for bar in family.BARS]
        run.verdicts = judge(bars, run.results, run.machine)
    written = [folder / "report.html"]
    write_html(written[0], run, steps=outcomes, missing=missing)
    if run.results:
        written += [folder / "speedups.png"]
        write_speedups(written[-1], run)
    if any(r.case.suite == "sweep" for r in run.results):
        written += [folder / "summary.png"]
        write_png(written[-1], run)
    return written
