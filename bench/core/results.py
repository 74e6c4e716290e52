"""The results that are kept: bench/results/<device>/*.json, of which the tables are made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import Run

FOLDER = Path(__file__).resolve().parents[1] / "results"


def folder_of(device: str) -> str:
    """NVIDIA H200 -> nvidia-h200"""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def device_files(folder: Path) -> Iterator[Path]:
    """The files of results in a device's folder, which also holds proofs."""
    for path in sorted(folder.glob("*.json")):
        if "results" in json.loads(path.read_text(encoding="utf-8")):
            yield path


def device_run(folder: Path) -> Run:
    """Everything measured on a device as one run: newest machine, best ceilings, every case once
    (the newest one)."""
    from .ceilings import Ceilings
    from .report import Run, read_json  # needs rich, which tests on a GPU do without

    runs = sorted(map(read_json, device_files(folder)), key=lambda run: run.machine["date"])
    whole = Run({}, Ceilings({}), [])
    cases = {}
    for run in runs:
        whole.machine = run.machine
        cases |= {r.case.key: r for r in run.results}
        for kind in ("copy", "matmul"):
            best = getattr(whole.ceilings, kind)
            for key, rate in getattr(run.ceilings, kind).items():
                best[key] = max(rate, best.get(key, 0.0))
        whole.ceilings.how = run.ceilings.how
    whole.results = list(cases.values())
    return whole
