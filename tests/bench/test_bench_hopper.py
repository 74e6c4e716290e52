"""Hopper kernels are chosen by default only with a record from hardware under bench/results."""

import json
import re

import pytest

from bench.core import results
from bench.gpu import hopper, steps
from bench.gpu.runner import FAILED, PASSED


def chosen_by_default():
    """As the tree says, which is what the build and fastops.info go by."""
    text = (steps.ROOT / "cmake" / "cuda.cmake").read_text()
    (value,) = re.findall(r"^set\(FASTOPS_HOPPER_BY_DEFAULT (ON|OFF)\)$", text, re.MULTILINE)
    return value == "ON"


def test_the_default_has_a_record():
    assert not chosen_by_default() or hopper.why_not(results.FOLDER) == {}


@pytest.fixture
def recorded(tmp_path):
    """A device's folder as a whole `make gpu` leaves it: (folder, content of its files)."""
    folder = tmp_path / "nvidia-test"
    folder.mkdir()
    planned = steps.plan(["correctness"], None, folder, hopper=True)
    proof = {
        "library": "a",
        "facts": {"machine": {"gpu": "NVIDIA Test", "capability": "9.0"}},
        "steps": [{"part": s.part, "name": s.name, "status": PASSED} for s in planned],
    }
    return folder, {"proof": proof, "conformance": {"device": "NVIDIA Test", "probes": {"mma": ""}}}


def said(folder, content):
    for name, data in content.items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    return hopper.lacking(folder)


def test_a_whole_record_speaks_for_them(recorded):
    folder, content = recorded
    (folder.parent / "another").mkdir()
    nothing = ["no conformance.json", "no proof.json"]
    assert hopper.why_not(folder.parent) == {"another": nothing, folder.name: nothing}
    assert said(folder, content) == []
    assert hopper.why_not(folder.parent) == {}


def test_what_a_record_lacks_is_said(recorded):
    folder, content = recorded
    machine, kept = content["proof"]["facts"]["machine"], content["proof"]["steps"]
    machine["capability"] = "8.0"
    content["conformance"]["device"] = "not yet recorded"
    assert said(folder, content) == [
        "8.0 is not 9.0", "conformance.json is not of NVIDIA Test"
    ]  # fmt: skip
    machine["capability"], content["conformance"]["device"] = "9.0", machine["gpu"]
    by_name = {step["name"]: step for step in kept}
    by_name["record of single instructions"]["status"] = FAILED
    by_name["tests/softmax"]["status"] = FAILED  # without FASTOPS_SM90=1: about other kernels
    kept.remove(by_name["tests/attention, Hopper kernels"])
    assert said(folder, content) == [
        f"record of single instructions: {FAILED}",
        "tests/attention, Hopper kernels: not run",
    ]
    content["conformance"]["probes"] = {}
    assert said(folder, content)[0] == "conformance.json is not of NVIDIA Test"
