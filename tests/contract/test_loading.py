"""Loading, its failures, and the report of what works."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastops
from fastops import _load

PACKAGE = Path(fastops.__file__).parent


def run(code: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )


def copy_of_package(folder: Path) -> Path:
    shutil.copytree(
        PACKAGE, folder / "fastops", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    (folder / "fastops" / "_lib").mkdir(exist_ok=True)
    return folder


CALL = """
import torch, fastops
from fastops import _load
assert "softmax" in fastops.__all__
try:
    fastops.softmax(torch.zeros(3))
except RuntimeError as error:
    print(error)
"""


def test_missing_library_is_said_at_the_call(tmp_path):
    done = run(CALL, copy_of_package(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "fastops.softmax: the cpu kernels are not available: libfastops.so was not built" in (
        done.stdout
    )
    assert "pip install ." in done.stdout


def test_broken_library_is_said_at_the_call(tmp_path):
    (copy_of_package(tmp_path) / "fastops" / "_lib" / "libfastops.so").write_text("not a library")
    done = run(CALL, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "libfastops.so does not load under torch" in done.stdout


def test_old_torch_is_said_at_the_call(tmp_path):
    code = "import torch; torch.__version__ = '2.10.1'\n" + CALL
    done = run(code, copy_of_package(tmp_path))
    assert "torch 2.10.1 is imported, but fastops needs torch >= 2.11; upgrade torch" in done.stdout


def test_info_when_nothing_loads(tmp_path):
    copy_of_package(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "fastops.info", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "was not built" in report["ops"]["softmax"]["cpu"]
    assert report["cpu"].startswith("unknown (")


def test_info_here(capsys):
    from fastops import info

    assert info.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["torch"] == torch.__version__
    assert all(devices["cpu"] == "yes" for devices in report["ops"].values())
    assert report["build"]["cpu_isas"] and "libfastops.so" in report["build"]["libraries"]
    assert info.main([]) == 0
    assert re.search(r"^  softmax +yes", capsys.readouterr().out, re.MULTILINE)


def test_info_names_every_public_op():
    from fastops import info

    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names()
                  if name.startswith("fastops::") and "." not in name}  # fmt: skip
    helpers = re.compile(r"^_|_backward$|_lse$|^nm_(linear_d[xw]|check|decompress)$")
    unlisted = {name for name in registered if not helpers.search(name)} - set(info.OPS)
    assert not unlisted and set(info.OPS) <= registered


@pytest.mark.parametrize(
    ("archs", "by_default", "variable", "said"),
    [([], False, None, "^not built"), (["8.0"], True, "1", "^not built"),
     (["8.0", "9.0a"], False, None, "^built, but off: no record .* FASTOPS_SM90=1 turns them on"),
     (["9.0a"], None, "", "^built, but off"), (["9.0a"], False, "1", "^on .* no record"),
     (["9.0a"], False, "0", "^off"), (["9.0a"], True, "0", "^off"), (["9.0a"], True, "yes", "^off"),
     (["9.0a"], True, None, "^on: a record .* FASTOPS_SM90=0 turns them off"),
     (["9.0a"], True, "1", r"^on \(FASTOPS_SM90=1\)$")],
)  # fmt: skip
def test_info_says_whether_hopper_kernels_run(monkeypatch, archs, by_default, variable, said):
    from fastops import info

    record = {"cuda_archs": archs, "hopper_by_default": by_default}
    monkeypatch.setattr(_load, "build_record", lambda: record)
    monkeypatch.delenv("FASTOPS_SM90", raising=False)
    if variable is not None:
        monkeypatch.setenv("FASTOPS_SM90", variable)
    assert re.search(said, info.collect()["hopper_kernels"])


def test_cuda_tensors_under_cpu_torch():
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    with pytest.raises(RuntimeError, match=r"the cuda kernels are not available: torch .* without"):
        _load.require("fastops.softmax", torch.device("cuda", 0))
    with pytest.raises(RuntimeError, match="expected tensors on cpu or cuda, got mps"):
        _load.require("fastops.softmax", torch.device("mps"))


def test_version_is_that_of_the_project():
    project = PACKAGE.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("installed without its sources")
    assert f'version = "{fastops.__version__}"' in project.read_text()
