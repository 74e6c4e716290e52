"""Gradients: of the kernels against autograd through the reference, and gradcheck."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastops
from fastops import MergePlan
from fastops.merge.reference import MODES, merge_reference
from tests.merge.problems import random_plan
from tests.merge.test_match import randn
from tests.merge.test_merge import sizes
from tests.numerics import FLOATS

pytestmark = pytest.mark.isa


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(mode, weighted):
    plan = random_plan(2, 9, 4)
    x = randn(2, 9, 3, dtype=torch.float64)
    inputs = leaves(x, sizes(2, 9, torch.float64) / 3) if weighted else leaves(x)

    def call(x, size=None):
        y, merged, log_merged = fastops.merge_tokens(
            x, plan, size=size, mode=mode, return_size=True
        )
        if size is None:
            return y
        return y, merged, torch.where(merged > 0, log_merged, 0)

    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs, atol=1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_gradcheck_unmerge(residual):
    plan = random_plan(2, 9, 4)
    inputs = leaves(randn(2, 4, 3, dtype=torch.float64))
    if residual:
        inputs += leaves(randn(2, 9, 3, dtype=torch.float64))
    assert gradcheck(lambda y, r=None: fastops.unmerge_tokens(y, plan, r), inputs)
    assert gradgradcheck(lambda y, r=None: fastops.unmerge_tokens(y, plan, r), inputs)


def gradients(merge, xs, size):
    """Of a fixed combination of everything merge returns."""
    inputs = leaves(*xs, size)
    ys, merged, log_merged = merge(inputs[:-1], inputs[-1])
    total = sum((y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum() for y in ys)
    total = total + (merged * 0.3).sum() + torch.where(merged > 0, log_merged, 0).sum()
    return torch.autograd.grad(total, inputs)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", MODES)
def test_against_autograd_of_the_reference(dtype, mode):
    plan = random_plan(2, 60, 25)
    xs = [randn(2, 60, 40, dtype=dtype), randn(2, 3, 60, 18, dtype=dtype, seed=2)]
    size = sizes(2, 60, torch.float64 if dtype == torch.float64 else torch.float32)

    def ours(xs, size):
        return fastops.merge_tokens(tuple(xs), plan, size=size, mode=mode)

    def reference(xs, size):
        both = [merge_reference(x, plan.map, plan.num_out, size, mode) for x in xs]
        merged = both[0][1]
        return [y for y, _ in both], merged, torch.where(merged > 0, merged, 1).log()

    got = gradients(ours, xs, size)
    wide = gradients(reference, [x.double() for x in xs], size.double())
    bound = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
    for g, w in zip(got, wide, strict=True):
        assert (g.double() - w).abs().max() <= bound[dtype] * w.abs().max()


def test_ties_share():
    plan = MergePlan.from_map(torch.zeros(1, 4, dtype=torch.int32), 1)
    x = torch.tensor([[[1.0, 2.0], [3.0, 2.0], [3.0, 0.0], [3.0, 2.0]]], requires_grad=True)
    fastops.merge_tokens(x, plan, mode="max").sum().backward()
    third = 1 / 3
    expected = [[0, third], [third, third], [third, 0], [third, third]]
    torch.testing.assert_close(x.grad, torch.tensor([expected]))


@pytest.mark.parametrize("mode", MODES)
def test_special_rows_have_finite_gradients(mode):
    """A mean of 0, sizes of 0, tokens of no row."""
    plan = MergePlan.from_map(torch.tensor([[0, 0, 1, 1, -1]]), 2)
    x = torch.tensor([[[1.0, -2.0], [-1.0, 2.0], [1.0, 1.0], [2.0, 3.0], [5.0, 5.0]]])
    size = torch.tensor([[1.0, 1.0, 0.0, 0.0, 3.0]])
    x, size = leaves(x, size)
    y, merged, _ = fastops.merge_tokens(x, plan, size=size, mode=mode)
    (y.sum() + merged.sum()).backward()
    assert x.grad.isfinite().all() and size.grad.isfinite().all()
    assert (x.grad[0, 4] == 0).all() and size.grad[0, 4] == 0


def test_only_what_needs_it():
    plan = random_plan(2, 9, 4)
    x, size = randn(2, 9, 3), sizes(2, 9).requires_grad_()
    _, merged, _ = fastops.merge_tokens(x, plan, size=size)
    merged.sum().backward()
    assert torch.equal(size.grad, (plan.map >= 0).float())
    a, b = leaves(randn(2, 9, 3), randn(2, 9, 5))
    ya, _ = fastops.merge_tokens((a, b), plan)
    ya.sum().backward()
    assert (b.grad is None or (b.grad == 0).all()) and a.grad.abs().sum() > 0
    fastops.match_tokens(a, r=2)  # needs none, and takes none
