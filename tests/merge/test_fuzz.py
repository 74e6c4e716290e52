"""hypothesis: any sizes, partitions, ties and flags, from metric to merged tokens and back."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastops
from fastops.merge import reference as ref
from tests.merge.problems import OPS, Problem, check_plan
from tests.numerics import FLOATS


@st.composite
def problems(draw):
    batch, channels = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    partition = draw(st.sampled_from(["alternate", "kth", "random", "grid"]))
    cls, distill = draw(st.booleans()), draw(st.booleans())
    arguments = {"class_token": cls, "distill_token": distill}
    n = draw(st.integers(1, 70))
    if partition == "grid":
        h, w = draw(st.integers(1, 8)), draw(st.integers(1, 8))
        n = h * w + cls + distill
        arguments |= {"grid": (h, w), "stride": draw(st.integers(1, 3))}
    if partition == "kth":
        arguments["k"] = draw(st.integers(2, 5))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    if partition in ("random", "grid"):
        arguments["generator"] = generator
    how = draw(st.sampled_from(["r", "ratio", "threshold"] if partition != "random" else ["r"]))
    arguments[how] = draw(
        {
            "r": st.integers(0, n + 3),
            "ratio": st.floats(0, 1),
            "threshold": st.floats(-1, 1),
        }[how]
    )
    dtype = draw(st.sampled_from(FLOATS))
    metric = torch.randn(batch, n, channels, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):  # many equal vectors, and zeros
        metric = metric.sign() * (torch.rand(batch, n, 1, generator=generator) < 0.8)
    if draw(st.booleans()):
        arguments["padding_mask"] = torch.rand(batch, n, generator=generator) < 0.3
    return metric.to(dtype), {"partition": partition, **arguments}


@settings(max_examples=150)
@given(problems(), st.sampled_from(["position", "reference"]), st.sampled_from(ref.MODES))
def test_any_problem(problem, order, mode):
    metric, arguments = problem
    batch, n, _ = metric.shape
    plan = fastops.match_tokens(metric, order=order, **arguments)
    check_plan(plan)
    mask = arguments.get("padding_mask")
    if mask is None:
        mask = torch.zeros(batch, n, dtype=torch.bool)
    assert torch.equal(plan.map >= 0, ~mask)

    size = torch.randint(1, 5, (batch, n)).to(
        torch.float64 if metric.dtype == torch.float64 else torch.float32
    )
    y, merged, _ = fastops.merge_tokens(metric, plan, size=size, mode=mode)
    wide, total = ref.merge_reference(metric.double(), plan.map, plan.num_out, size.double(), mode)
    bound = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(metric.dtype, 1e-5)
    torch.testing.assert_close(y.double(), wide, rtol=bound, atol=bound * 8)
    assert torch.equal(merged.double(), total)
    assert torch.equal(merged.sum(1), (size * ~mask).sum(1))
    back = fastops.unmerge_tokens(y, plan)
    assert torch.equal(back, ref.unmerge_reference(y, plan.map))
    if "generator" not in arguments:
        repeat = fastops.match_tokens(metric, order=order, **arguments)
        assert torch.equal(repeat.map, plan.map)


@settings(max_examples=100)
@given(
    st.integers(1, 3),
    st.integers(1, 150),
    st.integers(1, 70),
    st.integers(2, 6),
    st.booleans(),
    st.sampled_from(FLOATS),
    st.integers(0, 2**31),
)
def test_any_match(batch, n, channels, k, cls, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    metric = torch.randn(batch, n, channels, generator=generator, dtype=torch.float64).to(dtype)
    problem = Problem(metric, {"k": k, "class_token": cls})
    scores, matches = problem.check_match()
    repeat = OPS.token_match(metric, k=k, class_token=cls)
    assert torch.equal(repeat[0], scores) and torch.equal(repeat[1], matches)
