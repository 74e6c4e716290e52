"""FASTOPS_SIMT=1 has the CUDA launchers serve CPU tensors, for the whole process: `make test-simt`
sets it for this folder, and elsewhere the modules that need it are not collected.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.numerics import EMULATED
from tests.simt.emulator import ORDERS, emulator, launches

collect_ignore_glob = [] if EMULATED else ["test_*_ops.py", "test_mutants.py", "test_traffic.py"]
if EMULATED:
    torch.set_num_threads(1)  # many small tensors: threads would only wait for each other


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest) -> Iterator[str]:
    """A test in three orders of threads; asynchronous copies land early in one of them."""
    emulator().simt_configure(ORDERS[request.param], int(request.param == "descending"), 7)
    launches()
    yield request.param
    emulator().simt_configure(0, 0, 1)
