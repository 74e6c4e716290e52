"""libfastops_cuda loads and registers its kernels, on a machine without a GPU.

CPU torch lacks one function that the library refers to, the current CUDA stream; a stand-in for it
lets the library load here. Nothing is launched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.build.libraries import FOLDER, library

STUB = "int aoti_torch_get_current_cuda_stream(int device, void** stream) { return 1; }\n"
SCRIPT = """
import torch
torch.ops.load_library({cpu!r})
torch.ops.load_library({cuda!r})
has = torch._C._dispatch_has_kernel_for_dispatch_key
names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("fastops::")]
assert names
for name in names:
    assert has(name, "CUDA") == has(name, "CPU"), name
print(len(names))
"""


@pytest.mark.skipif(torch.version.cuda is not None, reason="CUDA torch loads it for real")
def test_every_cpu_op_has_a_cuda_kernel(tmp_path: Path) -> None:
    cuda = library("libfastops_cuda.so")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "stub.c").write_text(STUB)
    stub = tmp_path / "stub.so"
    subprocess.run([compiler, "-shared", "-o", stub, tmp_path / "stub.c"], check=True)
    script = SCRIPT.format(cpu=str(FOLDER / "libfastops.so"), cuda=str(cuda))
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "LD_PRELOAD": str(stub)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 16
