"""Each planted bug is caught by the check named for it, and good kernels pass, in every order."""

from __future__ import annotations

import ctypes
import itertools
import re

import pytest

from tests.simt.simt_lib import library_path

ORDERS = {"ascending": 0, "descending": 1, "random": 2}
ASYNC = {"late": 0, "early": 1}


def load() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(library_path("simt_planted")))
    for name in ("planted_name", "planted_expected", "planted_run"):
        getattr(lib, name).restype = ctypes.c_char_p
    lib.planted_run.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_ulonglong]
    return lib


try:
    LIB = load()
    CASES = {LIB.planted_name(i).decode(): i for i in range(LIB.planted_count())}
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)


def run(case: str, order: str, mode: str, seed: int = 1) -> str:
    return LIB.planted_run(CASES[case], ORDERS[order], ASYNC[mode], seed).decode()


@pytest.mark.parametrize("case", CASES)
def test_case(case: str) -> None:
    expected = LIB.planted_expected(CASES[case]).decode()
    for order, mode in itertools.product(ORDERS, ASYNC):
        report = run(case, order, mode)
        if not expected:
            assert report == "", (order, mode)
            continue
        assert re.search(rf"^({expected})\b", report, re.MULTILINE), (order, mode, report)


def test_a_report_names_thread_line_and_element() -> None:
    report = run("read_past_end", "ascending", "late")
    assert "kernel planted" in report
    assert "block (0, 0, 0) thread (63, 0, 0) reads 4 bytes of x + 64 elements" in report
    assert "1 past its last element" in report
    assert "tests/simt/planted.cuh:" in report and "read_at" in report


def test_a_race_names_both_lines() -> None:
    report = run("missing_barrier", "ascending", "late")
    first = report.split("\nrace")[1]
    assert first.count("tests/simt/planted.cuh:") == 2, report


def test_every_check_has_a_planted_bug() -> None:
    caught = {name for i in CASES.values() for name in LIB.planted_expected(i).decode().split("|")}
    assert caught >= {
        "race", "block-race", "out-of-bounds", "misaligned", "uninitialised-read",
        "write-to-const", "divergent-barrier", "divergent-collective", "shuffle-source",
        "index-bounds", "foreign-stack", "async-pending", "cluster-protocol", "deadlock",
        "unwritten", "barrier-protocol", "sparse-metadata", "mbarrier-protocol", "proxy-fence",
        "bulk-copy", "wgmma-protocol", "setmaxnreg",
    }  # fmt: skip


def test_a_launch_after_a_failed_one_is_clean() -> None:
    assert run("divergent_shuffle", "random", "late")
    assert run("block_sum", "random", "late") == ""
