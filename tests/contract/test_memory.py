"""What memory results lie in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastops

SMAPS = Path("/proc/self/smaps")


def flags(tensor: torch.Tensor) -> set[str]:
    """The kernel's flags (proc(5), VmFlags) of the mapping that the tensor's middle is in."""
    middle, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in SMAPS.read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first:
            begin, end = (int(bound, 16) for bound in first.split("-"))
            inside = begin <= middle < end
        elif inside and first == "VmFlags:":
            return set(line.split()[1:])
    return set()


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists() or "VmFlags" not in SMAPS.read_text(),
    reason="no transparent huge pages here, or no way to ask",
)
@pytest.mark.parametrize("transposed", [False, True])
def test_large_results_are_to_have_huge_pages(transposed):
    """32 MB are the kernel's each time: page faults for each 4 KB would take most of the time."""
    x = torch.zeros(2048, 4096)
    assert "hg" in flags(fastops.softmax(x.t() if transposed else x))
    assert "hg" in flags(fastops.softmax_topk(x, 2048)[1])
