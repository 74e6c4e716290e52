"""What a GPU is held to can be judged: each bar has cases, a result that meets it and one that does
not; made up here, where there is no GPU."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

import bench.__main__ as cli
from bench import attention, merge, nm, relatives, softmax, tables
from bench.attention.cases import MASKS, WIDE, WIDE_MASKS
from bench.attention.model import work
from bench.core import env
from bench.core.case import Case
from bench.core.ceilings import Ceilings
from bench.core.pool import Pool
from bench.core.report import read_json, write_json
from bench.core.roofline import GPUS, floor
from bench.core.select import Selection
from bench.families import FAMILIES
from bench.gpu import publish, runner, steps
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


def test_every_gpu_case_is_modelled():
    for case in cases(attention):
        assert work(case).flops and floor(work(case), GPUS[-1])[0] > 0, case.key


# ---- attention -----------------------------------------------------------------------------------


def counted(op, shape):
    """FLOP of a dense pass as PyTorch counts them."""
    forward, backward = sdpa_flop_count(shape, shape, shape), sdpa_backward_flop_count(*[shape] * 4)
    return {"attention": forward, "attention_backward": backward}.get(op, forward + backward)


@pytest.mark.parametrize("op", ("attention", "attention_backward"))
@pytest.mark.parametrize("shape", WIDE)
def test_flop_are_those_that_pytorch_counts(op, shape):
    case = Case(op, "dense", "bf16", shape, device="cuda", variant="dense")
    (found,) = work(case).flops.values()
    assert found == counted(op, shape)
    tenth = Case(op, "blocks", "bf16", shape, device="cuda", variant="10 %")
    assert sum(work(tenth).flops.values()) == pytest.approx(found * 26 / 256)


def test_a_gradient_with_its_forward_forms_the_scores_anew():
    """Which PyTorch counts as part of the backward, as the op by itself does."""
    case = Case("attention_grad", "dense", "bf16", WIDE[0], variant="dense")
    assert sum(work(case).flops.values()) == counted("attention_grad", WIDE[0])


@pytest.mark.parametrize("name, shape", [(n, s) for n, ss in WIDE_MASKS.items() for s in ss])
def test_masks_keep_what_is_said_of_them(name, shape):
    kept, mask = MASKS[name], MASKS[name].make(shape[2])
    if mask is None:
        assert name == "dense" and kept.share(shape[2]) == 1
        return
    assert mask.block_size == (kept.block, kept.block)
    assert mask.density == pytest.approx(kept.share(shape[2]))
    assert kept.share(shape[2]) == pytest.approx(kept.density, rel=0.02)
    assert kept.share(shape[2]) * (shape[2] // kept.block) >= 16 or kept.density < 0.1


def judged(family, title, results, machine=H200):
    (bar,) = [bar for bar in family.BARS if bar.title.startswith(title)]
    return bar.judge(results, machine)


@pytest.mark.parametrize(
    "title, op, shape, machine, asked",
    [
        ("CUDA attention, Hopper kernels", "attention", WIDE[0], H200, 620),
        ("CUDA attention, Hopper kernels", "attention", WIDE[1], H200, 480),
        ("CUDA backward, Hopper kernels", "attention_backward", WIDE[0], H200, 480),
        ("CUDA backward, Hopper kernels", "attention_backward", WIDE[1], H200, 480),
        ("CUDA attention, sm_80 kernels", "attention", WIDE[0], OLDER, 330),
        ("CUDA backward, sm_80 kernels", "attention_backward", WIDE[0], OLDER, 250),
    ],
)
def test_rates(title, op, shape, machine, asked):
    def told(tera, where, variant="dense", **more):
        case = Case(op, "", **({"dtype": "bf16", "shape": shape} | more), device="cuda",
                    variant=variant)  # fmt: skip
        ms = counted(op, case.shape) / (tera * 1e12) * 1e3
        bars = [bar for bar in attention.BARS if bar.title.startswith(title)]
        found = [v for bar in bars if (v := bar.judge([result(case, ms)], where))]
        assert len(found) <= 1
        return found[0] if found else None

    met, missed = told(asked * 1.01, machine), told(asked * 0.99, machine)
    assert met.met and met.worst == pytest.approx(asked * 1.01) and not missed.met
    assert not told(asked * 0.99, machine, "100 % of 128").met
    for where in {H200["gpu"]: H200 if machine is OLDER else OLDER, "A100": A100, "": {}}.values():
        assert told(asked * 1.01, where) is None
    short = (1, 4, 4096, shape[3])
    assert told(asked * 0.5, machine, shape=short) is None
    assert told(asked * 0.5, machine, dtype="fp16") is None


def test_rate_of_a_listed_block():
    title = "CUDA attention, 10 % of the blocks"
    case = Case("attention", "blocks", "bf16", WIDE[0], device="cuda", variant="10 %")
    share = MASKS["10 %"].make(16384).density

    def told(part, **peers):
        return judged(attention, title, [result(case, 2.0 * share / part, **peers)])

    assert told(0.91).met and told(0.91).worst == pytest.approx(0.91)
    assert not told(0.89).met
    alone = result(case)
    del alone.times["own dense"]
    assert judged(attention, title, [alone]) is None


@pytest.mark.parametrize(
    "op, name", [("attention", "attention"), ("attention_backward", "backward")]
)
@pytest.mark.parametrize(
    "work, peer, variant, elsewhere",
    [
        ("everything kept", "sdpa_cudnn", "dense", False),
        ("everything kept", "flex", "dense", False),
        ("at most 25 % of the blocks", "flex", "25 %", True),
        ("at most 25 % of the blocks", "flex", "10 % of 128", True),
    ],
)
def test_ahead_of_what_people_use(op, name, work, peer, variant, elsewhere):
    title = f"CUDA {name}, {work}, against {peer}"
    case = Case(op, "", "bf16", WIDE_MASKS[variant][0], device="cuda", variant=variant)
    assert judged(attention, title, [result(case, 1.9)]).met
    assert not judged(attention, title, [result(case, 2.1)]).met
    assert bool(judged(attention, title, [result(case)], A100)) == elsewhere
    without = result(case)
    del without.times[peer]
    assert judged(attention, title, [without]) is None


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


@pytest.fixture
def on_an_h200(monkeypatch):
    """`python -m bench` where every case runs at 650 TFLOP/s, in `times[0]` of its time."""
    times = [1.0]

    def measured(self, family, case, ceilings, effort):
        ms = times[0] * sum(work(case).flops.values()) / 650e12 * 1e3
        return result(case, ms, **dict.fromkeys(registry.PEERS, 1e3))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("bench.core.env.describe", lambda device: dict(H200))
    monkeypatch.setattr(registry, "missing", lambda device: {})
    monkeypatch.setattr(cli.Runner, "ceilings", lambda self: Ceilings({0: 4e12}))
    monkeypatch.setattr(cli.Runner, "run", measured)
    return times


@pytest.mark.parametrize("slower, code", [(1.0, 0), (1.1, 1)])
def test_check_judges_an_h200(on_an_h200, tmp_path, capsys, slower, code):
    on_an_h200[0] = slower
    path = tmp_path / "run.json"
    command = ["--op", "attention_backward", "attention", "--shapes", "dense", "--dtype", "bf16"]
    assert cli.main([*command, "--device", "cuda", "--check", "--json", str(path)]) == code
    text = capsys.readouterr().out
    assert "TFLOP/s" in text and "CUDA attention, Hopper kernels" in text
    assert text.count("✗") == code  # 591 of 620
    assert {r.case.shape for r in read_json(path).results} >= set(WIDE)
    assert read_json(path).machine["hopper_kernels"]


def test_what_hopper_kernels_reach_is_published_and_tabulated(tmp_path, run):
    folder = tmp_path / "nvidia-h200"
    case = Case("attention", "dense", "bf16", WIDE[0], device="cuda", variant="dense")
    for path, machine, tera in ((folder, OLDER, 340), (folder / steps.HOPPER_FOLDER, H200, 600)):
        path.mkdir()
        run.machine, run.results = (
            machine,
            [result(case, counted("attention", WIDE[0]) / tera / 1e9)],
        )
        write_json(path / "attention.json", run)
    outcomes = [runner.Outcome("benchmarks", f"attention{name}", runner.PASSED)
                for name in ("", f", {steps.HOPPER}")]  # fmt: skip
    written = publish.publish(folder, outcomes, {}, OLDER)
    older, hopper = (p.read_text() for p in written if p.name == "report.html")
    assert "340.00 TFLOP/s" in older and "CUDA attention, sm_80 kernels" in older
    assert "600.00 TFLOP/s" in hopper and "sm_80 kernels" not in hopper
    assert "NVIDIA H200, Hopper kernels" in hopper and "Hopper kernels, CUDA" not in older
    found = tables.runs(tmp_path)
    assert list(found) == ["nvidia-h200", "nvidia-h200/hopper"]
    head, *rows = tables.bars(found, [attention])
    assert head[2:] == ("NVIDIA H200", "NVIDIA H200, Hopper kernels")
    told = {row[0].split(",")[1].strip(): row[1:] for row in rows if "16k" in row[0]}
    assert told == {
        "Hopper kernels": ("each ≥ 620 TFLOP/s", "–", "least 600.00 TFLOP/s **missed**"),
        "sm_80 kernels": ("each ≥ 330 TFLOP/s", "least 340.00 TFLOP/s", "–"),
    }
