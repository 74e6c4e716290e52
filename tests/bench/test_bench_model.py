"""The model: occupancy as NVIDIA's calculator counts it, floors from the datasheets."""

import json

import pytest

from bench import model
from bench.core.case import Case
from bench.core.roofline import GPUS, Work, floor, occupancy
from bench.core.select import Density
from bench.families import FAMILIES, name_of

A100, H100, H200 = GPUS


@pytest.mark.parametrize(
    "registers, threads, shared, gpu, expected",
    [
        (32, 256, 0, A100, (8, "threads")),
        (128, 256, 0, A100, (2, "registers")),
        (129, 256, 0, A100, (1, "registers")),  # 136 a thread: 12 warps
        (168, 128, 0, A100, (3, "registers")),
        (255, 128, 64 << 10, A100, (2, "registers")),
        (64, 512, 80 << 10, A100, (2, "registers")),
        (32, 128, 100 << 10, A100, (1, "shared")),
        (32, 128, 100 << 10, H100, (2, "shared")),
        (16, 32, 0, H200, (32, "blocks")),
    ],
)
def test_occupancy(registers, threads, shared, gpu, expected):
    assert occupancy(registers, threads, shared, gpu) == expected


def test_floor_is_what_takes_longest():
    assert floor(Work(2.039e12), A100) == (pytest.approx(1.0), "memory")
    assert floor(Work(1e9, {"tensor16": 312e12}), A100) == (pytest.approx(1.0), "tensor16")
    assert floor(Work(0, {}, 108 * 16 * 1.41e9), A100) == (pytest.approx(1.0), "exp")


def test_every_case_has_a_floor():
    """Of every family that is measured, except what costs nothing by definition."""
    found = list(model.floors(None, ["bf16", "fp32"], Density.standard))
    modelled = {name_of(family) for family, _ in model.models()}
    assert {case.op for case, _ in found} >= {
        op for f in FAMILIES if name_of(f) in modelled for op in f.OPS if name_of(f) != "relatives"
    } - {"block_mask"}  # made on the CPU
    assert modelled >= {"softmax", "relatives", "nm", "merge"}
    for case, work in found:
        assert work.bytes > 0 and floor(work, H200)[0] <= floor(work, A100)[0], case.key


def test_softmax_moves_two_tensors():
    case = Case("softmax", "sweep", "bf16", (1 << 15, 1 << 10), device="cuda")
    softmax = dict((name_of(f), m) for f, m in model.models())["softmax"]
    assert softmax.work(case) == Work(4 * (1 << 25), {}, 1 << 25)


def test_nm_moves_what_is_kept():
    case = Case("nm_linear", "nm_decode", "bf16", (1, 4096, 4096), variant="2:4", device="cuda")
    nm = dict((name_of(f), m) for f, m in model.models())["nm"]
    # Of each 4 elements two values and two indices of 2 bits, 4.5 bytes; then x and y.
    assert nm.work(case) == Work(4096 * 4096 // 4 * 4.5 + 2 * 8192, {"sparse16": 2.0 * 4096**2})
    dense = Case("nm_linear", "nm_gemm", "bf16", (8, 64, 64), variant="3:8", device="cuda")
    assert nm.unit(dense) == "tensor16"


def test_it_prints_without_a_library(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(model.kernels, "__defaults__", (tmp_path / "libfastops_cuda",))
    assert model.main(["--op", "softmax", "--dtype", "bf16"]) == 0
    text = capsys.readouterr().out
    assert "No residency" in text and "Least times" in text and "H200" in text


def test_kernels_are_the_greatest_of_their_variants(tmp_path):
    ptxas = {
        "rows_kernel<A>": {"registers": 40, "shared": 0},
        "rows_kernel<B>": {"registers": 80, "shared": 16},
        "stream_kernel<A>": {"registers": 60, "shared": 2048},
    }
    sass = {name: {"threads": 128, "total": 9} for name in ptxas}
    for kind, table in (("ptxas", ptxas), ("sass", sass)):
        (tmp_path / f"lib.{kind}.json").write_text(json.dumps({"sm_80": table}))
    found = list(model.kernels(A100, tmp_path / "lib"))
    budgets = json.loads((model.ROOT / "csrc/softmax/cuda/budget.json").read_text())
    (stream,) = (b for b in budgets if b["kernel"] == "stream_kernel<*>")
    assert ("softmax rows_kernel<*>", 80, 128, 16, 2) in found
    assert ("softmax stream_kernel<*>", 60, 128, 2048 + stream["dynamic"]["usual"], 1) in found
