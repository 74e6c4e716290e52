"""Shared by every test: the device fixture and the hypothesis profiles.

Tests marked `isa` run once per CPU instruction set: the kernels choose theirs once per process, so
`make test` runs `pytest -m isa` again under FASTOPS_CPU_ISA=avx2 and =portable. The mark goes on
whatever exercises a kernel; tests of the layers above need only one run.
"""

import ctypes
import os
import zlib
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from tests.cuda.moved import DEVICE, Carry
from tests.numerics import EMULATED
from tests.simt.simt_lib import library_path

hypothesis.settings.register_profile(
    "local",
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=set(hypothesis.Phase) - {hypothesis.Phase.explain},
)
hypothesis.settings.register_profile(
    "ci", parent=hypothesis.settings.get_profile("local"), derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


# pytest-xdist already runs a process per core: a thread pool in each would only make them wait for
# one another. Tests of threading set the count themselves.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "isa: runs again under every FASTOPS_CPU_ISA")
    config.addinivalue_line("markers", "large: needs seconds or gigabytes; -m 'not large' skips it")


# Left out where the CUDA kernels are emulated: what is about threads, caches and sums of the CPU,
# or runs the same small kernels hundreds of times, and would take the emulator minutes.
# tests/simt/coverage.py requires that every kernel is run all the same.
NOT_EMULATED = {
    "test_attention::test_determinism",
    "test_attention::test_lengths",
    "test_attention::test_nothing_around_edited_lists_is_read",
    "test_derivatives::test_gradcheck",
    "test_determinism::test_threads",
    "test_edges::test_longest",
    "test_edges::test_many_maxima",
    "test_forward::test_column_blocks",
    "test_large::test_columns_larger_than_the_cache",
    "test_large::test_outputs_larger_than_the_cache",
    "test_large::test_row_of_16m",
    "test_large::test_rows_beyond_any_scratch",
    "test_relatives::test_more_than_the_caches",
    "test_topk::test_vocabulary",
    "test_relatives_backward::test_more_than_the_caches",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not EMULATED:
        return
    left_out = [i for i in items if f"{i.path.stem}::{i.originalname}" in NOT_EMULATED]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [i for i in items if i not in left_out]


@pytest.fixture(autouse=EMULATED)
def emulated_order(request: pytest.FixtureRequest) -> None:
    """Spreads the emulated tests over the orders of threads and the times at which copies land."""
    if "FASTOPS_SIMT_ORDER" in os.environ or "FASTOPS_SIMT_ASYNC" in os.environ:
        return
    lib = ctypes.CDLL(str(library_path("libfastops_simt")))
    lib.simt_configure.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_ulonglong]
    chosen = zlib.crc32(request.node.nodeid.encode())
    lib.simt_configure(chosen % 3, chosen // 3 % 2, chosen + 1)


@pytest.fixture(autouse=DEVICE is not None)
def carried() -> Iterator[None]:
    """Has the tests' fastops ops run on another device (tests/cuda/moved.py)."""
    if DEVICE is None:
        yield
        return
    with Carry(DEVICE):
        yield


def pytest_make_parametrize_id(val: object) -> str | None:
    return str(val).removeprefix("torch.") if isinstance(val, torch.dtype) else None


def pytest_report_header() -> str:
    return f"devices: {', '.join(DEVICES)}; FASTOPS_CPU_ISA={os.environ.get('FASTOPS_CPU_ISA', '')}"


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param
