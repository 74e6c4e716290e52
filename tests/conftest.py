"""Shared by every test: the device fixture and the hypothesis profiles.

Tests marked `isa` run once per CPU instruction set: the kernels choose theirs once per process, so
`make test` runs `pytest -m isa` again under FASTOPS_CPU_ISA=avx2 and =portable. The mark goes on
whatever exercises a kernel; tests of the layers above need only one run.
"""

import os

import hypothesis
import pytest
import torch

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


# Left out where the CUDA kernels are emulated: sizes that are about threads, caches and sums of the
# CPU, and would take the emulator minutes.
NOT_EMULATED = {
    "test_determinism::test_threads",
    "test_large::test_outputs_larger_than_the_cache",
    "test_large::test_row_of_16m",
    "test_large::test_rows_beyond_any_scratch",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("FASTOPS_SIMT") == "1":
        skip = pytest.mark.skip(reason="not emulated: about the CPU, and too large")
        for item in items:
            if f"{item.path.stem}::{item.originalname}" in NOT_EMULATED:
                item.add_marker(skip)


def pytest_make_parametrize_id(val: object) -> str | None:
    return str(val).removeprefix("torch.") if isinstance(val, torch.dtype) else None


def pytest_report_header() -> str:
    return f"devices: {', '.join(DEVICES)}; FASTOPS_CPU_ISA={os.environ.get('FASTOPS_CPU_ISA', '')}"


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param
