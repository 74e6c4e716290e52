"""Runs steps one by one within a time limit and keeps what came of each as soon as it is known."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..core.case import Accuracy
from .steps import FOUND, ROOT, Step

PASSED, FAILED, STOPPED, MISSING, LEFT = (
    "passed", "failed", "stopped at the time limit", "missing", "not begun in time",
)  # fmt: skip
LEAST_S = 15.0  # a step is not begun for less
GRACE_S = 30.0  # for an interrupted step to write what it has
SUMMARY = re.compile(r"^(?:=+ )?(\d+ \w+(?:, \d+ \w+)* in [\d.]+s.*?)(?: =+)?$")


@dataclass
class Outcome:
    """What came of a step."""

    part: str
    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""
    log: str = ""  # its file's name

    @property
    def key(self) -> str:
        return f"{self.part}: {self.name}"

    @property
    def good(self) -> bool:
        return self.status == PASSED


class Proof:
    """proof.json: what was run on a device, of which library, and what came of it. Later runs
    replace the outcomes of the steps that they ran themselves."""

    def __init__(self, path: Path, library: str) -> None:
        self.path, self.library = path, library
        self.facts: dict[str, Any] = {}
        self.outcomes: dict[str, Outcome] = {}
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["library"] == library:  # what another build did proves nothing of this one
                self.facts = kept["facts"]
                self.outcomes = {o.key: o for o in (Outcome(**step) for step in kept["steps"])}

    def keep(self, *outcomes: Outcome) -> None:
        self.outcomes |= {o.key: o for o in outcomes}
        content = {
            "library": self.library,
            "facts": self.facts,
            "steps": [asdict(o) for o in self.outcomes.values()],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_suffix(".part")
        whole.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        whole.replace(self.path)

    def passed(self, step: Step) -> bool:
        return step.key in self.outcomes and self.outcomes[step.key].good

    def left(self, steps: Sequence[Step]) -> list[Step]:
        """The steps that have not passed; a benchmark that was stopped goes on where it was."""
        return [
            replace(step, command=(*step.command, "--keep"))
            if step.result and (was := self.outcomes.get(step.key)) and was.status == STOPPED
            else step
            for step in steps
            if not self.passed(step)
        ]


def run(
    steps: Sequence[Step],
    proof: Proof,
    logs: Path,
    seconds: float | None = None,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Every step in turn, whatever became of the one before, until `seconds` have passed."""
    deadline = None if seconds is None else time.monotonic() + seconds
    outcomes = []
    for number, step in enumerate(steps, 1):
        left = None if deadline is None else deadline - time.monotonic()
        say(f"[{number}/{len(steps)}] {step.key}")
        if step.missing:
            outcome = Outcome(step.part, step.name, MISSING, detail=step.missing)
        elif left is not None and left < LEAST_S:
            outcome = Outcome(step.part, step.name, LEFT)
        else:
            outcome = run_one(step, logs, min(step.limit_s, left or step.limit_s))
        if outcome.status != LEFT or not proof.passed(step):
            proof.keep(outcome)
        outcomes.append(outcome)
        say(f"        {line(outcome)}")
    return outcomes


def line(outcome: Outcome) -> str:
    took = f" in {outcome.seconds:.0f} s" if outcome.seconds else ""
    return f"{outcome.status}{took}" + (f": {outcome.detail}" if outcome.detail else "")


def run_one(step: Step, logs: Path, limit: float) -> Outcome:
    """Runs the command, its output in a file; interrupts it at the limit, so that it writes what it
    has, and ends it where it does not."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / (re.sub(r"[^\w.]+", "-", step.key).strip("-") + ".log")
    outcome = Outcome(step.part, step.name, FAILED, log=log.name)
    begin = time.monotonic()
    before = step.result.stat().st_mtime_ns if step.result and step.result.exists() else None
    with log.open("w", encoding="utf-8") as file:
        try:
            process = subprocess.Popen(
                step.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                env={**os.environ, **step.environment}, start_new_session=True,
                preexec_fn=_interruptible,
            )  # fmt: skip
        except OSError as error:
            outcome.detail = str(error)
            return outcome
        try:
            status = process.wait(limit)
            outcome.status = PASSED if status == 0 else FAILED
        except subprocess.TimeoutExpired:
            status = _stop(process)
            outcome.status = STOPPED
        except BaseException:
            _stop(process)
            raise
    outcome.seconds = round(time.monotonic() - begin, 1)
    after = step.result.stat().st_mtime_ns if step.result and step.result.exists() else None
    outcome.detail = _detail(step, status, log, fresh=after != before)
    if step.result and outcome.status == PASSED:
        if after == before or "WRONG" in outcome.detail:
            outcome.status = FAILED
        elif outcome.detail.startswith("0 cells"):
            outcome.status = MISSING  # the one peer of the op, as the log says
    return outcome


def _interruptible() -> None:
    """A shell's background job ignores interrupts, and so would everything that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(process: subprocess.Popen) -> int:
    """Interrupted first, ended after a grace; with everything that it started."""
    for number, grace in ((signal.SIGINT, GRACE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            return process.wait(grace)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("unreachable: SIGKILL ends a process")


def _detail(step: Step, status: int, log: Path, fresh: bool) -> str:
    """One line of what happened: counts of tests, of measured and of wrong cells, or the last line
    of a failure."""
    lines = [text.strip() for text in log.read_text(errors="replace").splitlines() if text.strip()]
    said = []
    if status == FOUND:
        said.append("the sanitizer found errors")
    if step.result:
        said.append(_measured(step.result) if fresh else "nothing measured")
    said += [match[1] for text in lines if (match := SUMMARY.match(text))][-1:]
    if status and (not said or step.result) and lines:
        said.append(lines[-1][:200])
    return "; ".join(said)


def _measured(path: Path) -> str:
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    wrong = sum(not Accuracy(**result["accuracy"]).right for result in results)
    return f"{len(results)} cells" + (f", {wrong} WRONG" if wrong else "")
