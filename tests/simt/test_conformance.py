"""Each emulated instruction against the PTX manual, and against a GPU once one is recorded.

The probes (tests/simt/conformance) are one-instruction kernels on exact integers. `make
record-conformance` runs them on a GPU and writes golden.json, which is replayed here.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import pytest

from tests.simt import record as recording
from tests.simt.record import GOLDEN, NOT_RECORDED, parse, unpack
from tests.simt.simt_lib import library_path


def load() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(library_path("simt_conformance")))
    lib.conformance_name.restype = ctypes.c_char_p
    lib.conformance_error.restype = ctypes.c_char_p
    lib.conformance_words.restype = ctypes.POINTER(ctypes.c_uint32)
    lib.simt_configure.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_ulonglong]
    return lib


try:
    LIB = load()
    PROBES = {LIB.conformance_name(i).decode(): i for i in range(LIB.conformance_count())}
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

RECORD = json.loads(GOLDEN.read_text())


def words(count: int) -> list[int]:
    assert count >= 0, LIB.conformance_error().decode()
    return LIB.conformance_words()[:count]


@pytest.mark.parametrize("probe", PROBES)
def test_as_the_manual_says(probe: str) -> None:
    expected = words(LIB.conformance_manual(PROBES[probe]))
    assert len(set(expected)) > 1
    for order, early in [(0, 0), (1, 1), (2, 0)]:
        LIB.simt_configure(order, early, 5)
        assert words(LIB.conformance_run(PROBES[probe])) == expected, (order, early)


@pytest.mark.skipif(RECORD["device"] == NOT_RECORDED, reason="golden.json: not yet recorded")
@pytest.mark.parametrize("probe", RECORD["probes"])
def test_as_a_gpu_did(probe: str) -> None:
    assert words(LIB.conformance_run(PROBES[probe])) == unpack(RECORD["probes"][probe])


def test_a_recording_is_read_back() -> None:
    lines = "device: NVIDIA H200\nmma: 00000001 ffffffff\nbulk_copy: 80000000\n"
    record = parse(lines)
    assert record["device"] == "NVIDIA H200"
    probes = record["probes"]
    assert {name: unpack(text) for name, text in probes.items()} == {
        "mma": [1, 2**32 - 1],
        "bulk_copy": [2**31],
    }


def test_a_recording_is_kept_in_every_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, golden = tmp_path / "program", tmp_path / "golden.json"
    copy = tmp_path / "nvidia-test" / "conformance.json"
    program.write_text(
        "#!/bin/sh\necho 'device: NVIDIA Test'\necho 'mma: 00000007'\nexit $STATUS\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(recording, "GOLDEN", golden)
    monkeypatch.setattr(sys, "argv", ["record", str(program), str(copy)])
    for status in (0, 1):  # 1: a probe contradicts the manual
        monkeypatch.setenv("STATUS", str(status))
        with pytest.raises(SystemExit) as left:
            recording.main()
        assert left.value.code == status
        kept = json.loads(copy.read_text())
        assert kept == json.loads(golden.read_text())
        assert (kept["device"], unpack(kept["probes"]["mma"])) == ("NVIDIA Test", [7])
