"""Hypothesis over shapes, strides, dims, dtypes, values and arguments of every op."""

import math
import os

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from tests.numerics import FLOATS, Guarded
from tests.softmax.oracle import ALGORITHMS, KINDS, Problem, op
from tests.softmax.test_backward import Backward, check_lse_backward

pytestmark = pytest.mark.isa


def examples(count: int) -> int:
    """Fewer where the kernels run a second time, under another instruction set."""
    return count // 3 if os.environ.get("FASTOPS_CPU_ISA") else count


# Multiples of 1/8 and powers of two: scores are exact, and what is judged is what comes after.
SCALES = (1.0, 1.0, 0.5, -1.0, 2.0, -0.25)


@st.composite
def views(draw, shape: tuple[int, ...]) -> tuple[list[int], int, int]:
    """(strides, offset, elements of storage) of a view of `shape`: dims in any order, gaps
    anywhere, some dims expanded."""
    order = draw(st.permutations(range(len(shape))))
    strides, step = [0] * len(shape), draw(st.sampled_from([1, 1, 1, 2, 3]))
    for d in order:
        strides[d] = step
        step = step * max(1, shape[d]) + draw(st.sampled_from([0, 0, 0, 1, 5]))
    return strides, draw(st.integers(0, 17)), step + 17


@st.composite
def tensors(draw, shape: tuple[int, ...], fill, expand: bool = True) -> torch.Tensor:
    """A view of storage that `fill` makes; expanded along some dims."""
    strides, offset, size = draw(views(shape))
    if expand and shape and draw(st.integers(0, 4)) == 0:
        strides[draw(st.integers(0, len(shape) - 1))] = 0
    return fill(size).as_strided(shape, strides, offset)


@st.composite
def values(draw, dtype: torch.dtype):
    """A function that fills storage with numbers of one character, a few special."""
    seed = draw(st.integers(0, 10_000))
    info = torch.finfo(dtype)
    kind = draw(st.sampled_from(["normal", "normal", "wide", "huge", "tiny", "ties"]))
    specials = draw(
        st.lists(st.sampled_from([math.inf, -math.inf, math.nan, -info.max, 0.0]), max_size=2)
    )

    def fill(size: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(size, generator=generator, dtype=torch.float64)
        x = (x * 8).round() / 8
        if kind == "wide":
            x = (x * 4000).clamp(-30_000, 30_000)
        elif kind == "huge":
            x = x.sign() * info.max * 0.37
        elif kind == "tiny":
            x = x * info.smallest_normal
        elif kind == "ties":
            x = x.round()
        for special in specials:
            x[torch.rand(size, generator=generator) < draw_share(seed)] = special
        return x.to(dtype)

    return fill


def draw_share(seed: int) -> float:
    return (0.02, 0.2, 0.9)[seed % 3]


def bools(seed: int):
    share = (0.1, 0.5, 0.95)[seed % 3]
    return lambda size: torch.rand(size, generator=torch.Generator().manual_seed(seed)) < share


def broadcastable(draw, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to `shape`."""
    sizes = tuple(1 if draw(st.integers(0, 3)) == 0 else n for n in shape)
    return sizes[draw(st.integers(0, len(sizes))) :] if draw(st.booleans()) else sizes


def row_shape(draw, shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    if draw(st.booleans()):
        return tuple(1 if d in dims else n for d, n in enumerate(shape))
    return broadcastable(draw, tuple(n for d, n in enumerate(shape) if d not in dims))


@st.composite
def problems(draw) -> Problem:
    dtype = draw(st.sampled_from(FLOATS))
    rank = draw(st.integers(1, 4))
    small = st.integers(1, 9 if rank < 4 else 5)
    shape = [draw(small) for _ in range(rank)]
    if draw(st.booleans()):
        shape[draw(st.integers(0, rank - 1))] = draw(st.integers(1, 300))
    shape = tuple(shape)
    dims = tuple(draw(st.sets(st.integers(0, rank - 1), min_size=1, max_size=rank)))
    if draw(st.integers(0, 2)):
        dims = (rank - 1,) if draw(st.booleans()) else dims[:1]
    problem = Problem(
        x=draw(tensors(shape, draw(values(dtype)))),
        dim=dims,
        scale=draw(st.sampled_from(SCALES)),
        zero_masked_rows=draw(st.booleans()),
        dtype=draw(st.sampled_from([None, None, *FLOATS])),
    )
    wanted = draw(st.sets(st.sampled_from(["mask", "bias", "lengths", "causal", "row_scale"])))
    seed = draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    if "mask" in wanted:
        problem.mask = draw(tensors(broadcastable(draw, shape), bools(seed)))
    if "bias" in wanted:
        bias = draw(values(draw(st.sampled_from([dtype, torch.float32]))))
        problem.bias = draw(tensors(broadcastable(draw, shape), bias))
    if "lengths" in wanted:
        n = math.prod(shape[d] for d in dims)
        kind = draw(st.sampled_from([torch.int32, torch.int64]))
        problem.lengths = draw(
            tensors(
                row_shape(draw, shape, dims),
                lambda size: torch.randint(0, n + 1, (size,), generator=generator, dtype=kind),
            )
        )
    if "causal" in wanted and rank >= 2 and dims == (rank - 1,):
        problem.causal = draw(st.sampled_from([1, 2]))
    if "row_scale" in wanted:
        options = torch.tensor(SCALES, dtype=problem.acc)
        problem.row_scale = draw(
            tensors(
                row_shape(draw, shape, dims),
                lambda size: options[torch.randint(0, len(SCALES), (size,), generator=generator)],
            )
        )
    return problem


def same_layout(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal strides; those of size-1 dims mean nothing."""
    return all(n == 1 or i == j for n, i, j in zip(a.shape, a.stride(), b.stride(), strict=True))


def huge(problem: Problem) -> bool:
    """Scores that overflow the accumulator, alone or before an infinite bias is added: it has an
    infinity or NaN where the reference has none."""
    rows = problem.exact_rows()
    limit = float(torch.finfo(problem.acc).max)
    part = problem.takes_part().cpu().numpy()
    sizes = np.where(np.isfinite(rows.scores), abs(rows.scores), rows.terms)
    return bool((part & (sizes > limit)).any())


@hypothesis.settings(max_examples=examples(240))
@given(problem=problems(), algorithm=st.sampled_from(list(ALGORITHMS.values())), data=st.data())
def test_forward(problem, algorithm, data):
    hypothesis.assume(not huge(problem))
    shape = tuple(problem.x.shape)
    for kind in KINDS:
        out, _ = problem.check_all(kind, algorithm=algorithm)
        strides, offset, size = data.draw(views(shape))
        guarded = Guarded((size,), problem.out_dtype, start=0)
        view = guarded.tensor.as_strided(shape, strides, 64 + offset % 17)
        op(kind).out(problem.x, problem.dims, **problem.forward_args() | {"dtype": None},
                     algorithm=algorithm, out=view)  # fmt: skip
        problem.check(kind, view)
        guarded.inside.fill_(False).as_strided(shape, strides, 64 + offset % 17).fill_(True)
        guarded.assert_intact()
        assert same_layout(out, torch.empty_like(problem.x))


@hypothesis.settings(max_examples=examples(100))
@given(problem=problems(), algorithm=st.sampled_from(list(ALGORITHMS.values())))
def test_logsumexp(problem, algorithm):
    problem.dtype = None
    problem.row_scale = None if problem.row_scale is None else problem.row_scale.to(problem.acc)
    hypothesis.assume(not huge(problem))
    args = problem.score_args() | {"algorithm": algorithm}
    lse = op("logsumexp")(problem.x, problem.dims, **args)
    problem.check_lse(lse)
    kept = op("logsumexp")(problem.x, problem.dims, True, **args)
    assert torch.equal(kept.flatten().nan_to_num(), lse.flatten().nan_to_num())


@hypothesis.settings(max_examples=examples(200))
@given(problem=problems(), data=st.data(), kind=st.sampled_from(KINDS))
def test_backward(problem, data, kind):
    hypothesis.assume(not huge(problem))
    y, lse = op(f"{kind}_lse")(problem.x, problem.dims, **problem.forward_args())
    hypothesis.assume(bool(problem.rows(y)[problem.takes_part()].isfinite().all()))
    seed = data.draw(st.integers(0, 100))
    generator = torch.Generator().manual_seed(seed)
    dtype = data.draw(st.sampled_from([y.dtype, *FLOATS]))
    shape = tuple(y.shape)
    dy = data.draw(tensors(shape, lambda size: torch.randn(size, generator=generator).to(dtype)))
    out_dtype = data.draw(st.sampled_from([None, *FLOATS]))
    case = Backward(kind, problem, y, dy, dtype=out_dtype)
    if data.draw(st.booleans()):
        case.dlse = torch.randn(lse.shape, generator=generator, dtype=torch.float64).to(case.acc)
    problem.row_scale = None if problem.row_scale is None else problem.row_scale.to(case.acc)
    case.check(case.run())


@hypothesis.settings(max_examples=examples(80))
@given(problem=problems())
def test_logsumexp_backward(problem):
    problem.dtype = None
    problem.row_scale = None if problem.row_scale is None else problem.row_scale.to(problem.acc)
    hypothesis.assume(not huge(problem))
    hypothesis.assume(
        bool(op("logsumexp")(problem.x, problem.dims, **problem.score_args()).isfinite().all())
    )
    check_lse_backward(problem)
