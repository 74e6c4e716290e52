"""hypothesis: any shapes, block maps and flags."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attention.problems import DTYPES, Problem, check
from tests.numerics import EMULATED

BLOCKS = st.sampled_from([16, 32, 64, 128])


@settings(max_examples=10 if EMULATED else 100)
@given(
    st.sampled_from(DTYPES), st.integers(1, 2), st.sampled_from([(1, 1), (4, 1), (4, 2), (3, 3)]),
    st.integers(1, 150), st.integers(1, 150), st.integers(1, 80), st.integers(1, 80),
    st.tuples(BLOCKS, BLOCKS), st.floats(0, 1), st.floats(0, 1), st.booleans(),
    st.integers(0, 2**31),
)  # fmt: skip
def test_any_problem(dtype, batch, heads, sq, skv, d, dv, block, blocks, inside, extras, seed):
    problem = Problem.make(
        dtype, batch=batch, heads=heads[0], kv_heads=heads[1], sq=sq, skv=skv, d=d, dv=dv,
        extras=extras, seed=seed,
    )  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand((batch, heads[0], -(-sq // block[0]), -(-skv // block[1])), generator=g)
    keep = (coarse < blocks).repeat_interleave(block[0], 2).repeat_interleave(block[1], 3)
    partial = torch.rand((batch, heads[0], sq, skv), generator=g) < inside
    whole = torch.rand(coarse.shape, generator=g) < 0.5
    whole = whole.repeat_interleave(block[0], 2).repeat_interleave(block[1], 3)
    problem.keep = keep[:, :, :sq, :skv] & (partial | whole[:, :, :sq, :skv])
    check(problem, problem.ours(block))
