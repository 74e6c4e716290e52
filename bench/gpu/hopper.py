"""Whether what is kept from GPUs lets Hopper kernels be chosen by default (docs/cuda.md)."""

from __future__ import annotations

import json
from pathlib import Path

from . import steps
from .runner import PASSED

CAPABILITY = "9.0"


def lacking(folder: Path) -> list[str]:
    """What a device's folder of results lacks: a record of single instructions and correctness with
    FASTOPS_SM90=1, of a GPU of that capability, all of it passed."""
    files = (folder / steps.CONFORMANCE, folder / "proof.json")
    if missing := [f"no {path.name}" for path in files if not path.exists()]:
        return missing
    conformance, proof = (json.loads(path.read_text(encoding="utf-8")) for path in files)
    machine = proof["facts"].get("machine", {})
    found = []
    if machine.get("capability") != CAPABILITY:
        found.append(f"{machine.get('capability')} is not {CAPABILITY}")
    if not conformance["probes"] or conformance["device"] != machine.get("gpu"):
        found.append(f"{steps.CONFORMANCE} is not of {machine.get('gpu')}")
    outcomes = {s["name"]: s["status"] for s in proof["steps"] if s["part"] == "correctness"}
    for step in steps.plan(["correctness"], None, folder, hopper=True):
        by_folder = step.name.startswith("tests/")
        if by_folder and step.environment.get("FASTOPS_SM90") != "1":
            continue
        status = outcomes.get(step.name, "not run")
        if status != PASSED:
            found.append(f"{step.name}: {status}")
    return found


def why_not(results: Path) -> dict[str, list[str]]:
    """What each device's folder lacks; empty where one lacks nothing."""
    found = {path.name: lacking(path) for path in sorted(results.iterdir()) if path.is_dir()}
    return {} if [] in found.values() else found
