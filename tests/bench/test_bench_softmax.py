"""The softmax cases: complete, distinct, and honest about what they measure."""

from collections import Counter

import pytest
import torch

from bench import softmax
from bench.core.case import Case
from bench.core.pool import Pool
from bench.core.select import Density, Selection

from .made_up import made_up


def selection(density=Density.standard, **more):
    fields = {"device": "cpu", "threads": (1, 2), "dtypes": ("fp32", "bf16", "fp16")}
    return Selection(**(fields | {"density": density} | more))


@pytest.mark.parametrize("density", Density)
def test_keys_are_distinct(density):
    keys = Counter(case.key for case in softmax.cases(selection(density)))
    assert keys and max(keys.values()) == 1


def test_a_standard_run_reaches_every_cpu_bar():
    cases = list(softmax.cases(selection()))
    results = [
        made_up(op=c.op, suite=c.suite, dtype=c.dtype, shape=c.shape, dim=c.dim, threads=c.threads)
        for c in cases
    ]
    for bar in softmax.BARS:
        assert bar.title.startswith("CUDA") or bar.judge(results), bar.title


def test_a_full_sweep_has_every_power_of_two():
    wanted = selection(Density.full, ops=frozenset({"softmax"}), suites=frozenset({"sweep"}))
    sizes = {c.n for c in softmax.cases(wanted) if c.dtype == "fp32"}
    assert sizes == {1 << k for k in range(6, 25)}


def test_selection_of_ops_and_suites():
    wanted = selection(ops=frozenset({"log_softmax"}), suites=frozenset({"llm", "face"}))
    assert {(c.op, c.suite) for c in softmax.cases(wanted)} == {
        ("log_softmax", "llm"), ("log_softmax", "face"),
    }  # fmt: skip


def workload(case):
    return softmax.prepare(case, Pool("cpu", 1 << 16), ("torch", "copy"))


@pytest.mark.parametrize("op", softmax.OPS)
def test_every_op_is_right_and_a_wrong_one_is_caught(op):
    case = Case(op, "sweep", "fp32", (64, 128), variant="mask" if "masked" in op else "")
    work = workload(case)
    assert work.verify().right
    # The check looks at what our call left in the output, not at what it found there.
    work.calls["fastops"][0] = lambda: None
    reference = work.verify
    ours = reference.args[2]
    ours.out.fill_(0.5)
    if ours.out is ours.peer_out:
        assert not reference().right
    else:
        assert reference().ours > 0.01


@pytest.mark.parametrize("variant", ["causal", "lengths", "padding mask"])
def test_masks_mean_the_same_to_both(variant):
    work = workload(Case("masked_softmax", "llm", "fp32", (2, 2, 64, 64), variant=variant))
    assert work.verify().right


@pytest.mark.parametrize(("shape", "dim"), [((4, 33, 8), 1), ((65, 16), 0)])
def test_inner_dims_are_right(shape, dim):
    assert workload(Case("softmax", "dims", "bf16", shape, dim=dim)).verify().right


def test_buffer_sets_overflow_the_cache_unless_warm():
    cold = workload(Case("softmax", "sweep", "fp32", (64, 128)))
    assert len(cold.calls["fastops"]) == 8  # tiny: as many sets as there may be
    warm = workload(Case("softmax", "cache", "fp32", (64, 128), warm=True))
    assert len(warm.calls["fastops"]) == 1 and "copy" not in warm.calls


def test_traffic_is_the_least_possible():
    def traffic(op, variant=""):
        return workload(Case(op, "sweep", "fp32", (1, 64, 64), variant=variant)).traffic

    tensor = 64 * 64 * 4
    assert traffic("softmax") == 2 * tensor
    assert traffic("softmax_backward") == 3 * tensor
    assert traffic("logsumexp") == tensor + 64 * 4
    assert traffic("masked_softmax", "mask") == 2 * tensor + 64 * 64
    # Causal: what lies behind the edge is written, not read.
    assert traffic("masked_softmax", "causal") == tensor + 64 * 65 // 2 * 4


def test_pool_hands_out_the_same_memory():
    pool = Pool("cpu", 1 << 12)
    a, b = (pool.scores(shape, torch.float32) for shape in ((4, 64), (16, 16)))
    assert a.data_ptr() == b.data_ptr()
    assert pool.scores((4, 64), torch.float32, 1).data_ptr() != a.data_ptr()
    assert 3 < a.std() < 5
