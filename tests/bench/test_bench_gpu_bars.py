"""What a GPU is held to can be judged: each bar has cases, a result that meets it and one that does
not; made up here, where there is no GPU."""

from dataclasses import replace

import pytest
import torch

import bench.__main__ as cli
from bench import merge, nm, relatives, softmax
from bench.core import env
from bench.core.case import Case
from bench.core.pool import Pool
from bench.core.roofline import GPUS, floor
from bench.core.select import Selection
from bench.families import FAMILIES
from bench.merge.model import work as merge_work
from bench.peers import registry

from .made_up import made_up

H200 = {
    "gpu": "NVIDIA H200", "hopper_kernels": True, "cuda": "13.0", "torch": "2.13.0", "load": 0.0,
    "date": "2026-01-01 00:00 UTC",
}  # fmt: skip
OLDER = H200 | {"hopper_kernels": False}
A100 = OLDER | {"gpu": "NVIDIA A100-SXM4-80GB"}
DTYPES = ("fp32", "bf16", "fp16")


@pytest.fixture(autouse=True)
def with_entmax(monkeypatch):
    monkeypatch.setattr("bench.peers.entmax_package.why_missing", lambda: None)


def cases(family, device="cuda"):
    threads = (0,) if device == "cuda" else (1, 2)
    size = cli.TENSOR_BYTES[device]
    return list(family.cases(Selection(device, threads, DTYPES, tensor_bytes=size)))


def result(case, ours=1.0, **more):
    """Of a case measured against every peer, `ours` milliseconds to their 2."""
    fields = {
        name: getattr(case, name)
        for name in ("op", "suite", "dtype", "shape", "dim", "threads", "device", "variant")
    }
    return made_up(ours, peers=dict.fromkeys(registry.PEERS, 2.0) | more, **fields)


# ---- every bar of a GPU is reached ---------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_a_standard_run_reaches_every_bar(family):
    on_gpu, on_cpu = ([result(c) for c in cases(family, d)] for d in ("cuda", "cpu"))
    for bar in family.BARS:
        told = [bar.judge(on_gpu, machine) for machine in (H200, OLDER)]
        assert any(told) == bar.title.startswith("CUDA"), bar.title
        assert any(told) != bool(bar.judge(on_cpu)), bar.title


def test_keys_are_distinct():
    keys = [case.key for family in FAMILIES for case in cases(family)]
    assert len(keys) == len(set(keys))


def judged(family, title, results, machine=H200):
    (bar,) = [bar for bar in family.BARS if bar.title.startswith(title)]
    return bar.judge(results, machine)


# ---- the other families --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "title, shape, variant, machine, least",
    [
        ("CUDA 8192×8192×8192, bf16, 2:4", (8192, 8192, 8192), "2:4", H200, 1.25),
        ("CUDA 4096×8192×8192, bf16, 2:4", (4096, 8192, 8192), "2:4", A100, 1.2),
        ("CUDA decode, 1 row", (1, 4096, 14336), "2:4", A100, 1.6),
    ],
)
def test_sparse_products_against_dense_ones(title, shape, variant, machine, least):
    suite = "nm_decode" if shape[0] == 1 else "nm_gemm"
    case = Case("nm_linear", suite, "bf16", shape, device="cuda", variant=variant)
    bar = next(bar for bar in nm.BARS if bar.title.startswith(title))
    assert bar.judge([result(case, 1.99 / least)], machine).met
    assert not bar.judge([result(case, 2.01 / least)], machine).met
    assert bar.judge([result(Case("nm_linear", suite, "bf16", (16, 64, 64), device="cuda",
                                  variant="2:4"))], machine) is None  # fmt: skip


@pytest.mark.parametrize("peer", ("cusparselt", "cutlass"))
def test_sparse_products_against_other_sparse_ones(peer):
    every = [result(case, 1.9) for case in cases(nm)]
    slow = next(r for r in every if r.case.shape == (512, 4096, 4096) and r.case.variant == "1:4")
    title = f"CUDA layers of ViT and Llama, against {peer}"
    assert judged(nm, title, every, A100).met
    slow.times["fastops"] = result(slow.case, 2.1).ours
    assert not judged(nm, title, every, A100).met
    for r in every:
        del r.times[peer]
    assert judged(nm, title, every, A100) is None
    if peer == "cusparselt":
        huge = Case("nm_linear", "nm_gemm", "bf16", (8192,) * 3, device="cuda", variant="2:4")
        title = "CUDA 8192×8192×8192, bf16, 2:4, against cusparselt"
        assert judged(nm, title, [result(huge, 1.9)]).met
        assert not judged(nm, title, [result(huge, 2.1)]).met
        assert judged(nm, title, [result(huge, 1.9)], OLDER) is None


def test_merging_against_compiled_tome_and_its_floor():
    case = next(c for c in cases(merge) if c.op == "match_merge")
    compiled, copied = (
        f"CUDA match + plan + merge {what}" for what in ("against compiled", "over a copy")
    )
    assert judged(merge, compiled, [result(case, 0.99)]).met
    assert not judged(merge, compiled, [result(case, 1.01)]).met
    found = result(case, 1.0)
    found.ceiling = found.traffic / 1e-3  # a copy takes 1 ms
    for ours, met in ((2.9, True), (3.1, False)):
        found.times["fastops"] = result(case, ours).ours
        assert judged(merge, copied, [found]).met == met


def test_a_copy_of_its_traffic_is_the_floor_of_merging():
    """Of bytes as the model counts them, which take longer than the FLOP."""
    pool = Pool("cpu", 1 << 16)
    (small,) = (c for c in cases(merge) if c.op == "match_merge" and c.variant == "ViT-L 384px")
    here = replace(small, device="cpu")
    assert merge.prepare(here, pool, ("torch",)).traffic == merge_work(here).bytes
    for case in cases(merge):
        if case.op == "match_merge":
            assert all(floor(merge_work(case), gpu)[1] == "memory" for gpu in GPUS)


@pytest.mark.parametrize("op", ("softmax", "softmax_backward"))
@pytest.mark.parametrize("n, asked", [(256, 0.85), (512, 0.85), (1024, 0.92), (1 << 20, 0.92)])
def test_softmax_as_a_share_of_a_copy(op, n, asked):
    found = [
        case for case in cases(softmax)
        if case.op == op and case.suite == "sweep" and case.n == n and case.dtype != "fp16"
    ]  # fmt: skip
    assert {case.dtype for case in found} == {"fp32", "bf16"}
    bars = [bar for bar in softmax.BARS if bar.title.startswith(f"CUDA {op}, N")]
    for share, met in ((asked + 0.01, True), (asked - 0.01, False)):
        some = made_up(device="cuda", op=op, shape=found[0].shape, dtype="bf16", threads=0)
        some.ceiling = some.rate / share
        (told,) = (v for bar in bars if (v := bar.judge([some], A100)))
        assert told.met == met


def test_relatives_are_held_to_the_same_on_a_gpu():
    here, there = (
        [bar for bar in relatives.BARS if bar.title.startswith("CUDA") == on_gpu]
        for on_gpu in (False, True)
    )
    assert [(f"CUDA {bar.title}", bar.each) for bar in here] == [(b.title, b.each) for b in there]
    case = next(c for c in cases(relatives) if c.op == "softmax_topk")
    assert judged(relatives, "CUDA softmax_topk", [result(case, 0.2)], A100).met
    assert not judged(relatives, "CUDA softmax_topk", [result(case, 0.3)], A100).met


# ---- as the commands judge -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "archs, variable, capability, on",
    [
        (["8.0", "9.0a"], "1", (9, 0), True),
        (["8.0", "9.0a"], "0", (9, 0), False),
        (["8.0"], "1", (9, 0), False),
        (["8.0", "9.0a"], "1", (8, 0), False),
    ],
)
def test_a_machine_says_which_kernels_it_ran(monkeypatch, archs, variable, capability, on):
    monkeypatch.setenv("FASTOPS_SM90", variable)
    monkeypatch.setattr("fastops._load.build_record", lambda: {"cuda_archs": archs})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert env.describe("cuda")["hopper_kernels"] is on
    assert "hopper_kernels" not in env.describe("cpu")
