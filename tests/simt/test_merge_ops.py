"""The CUDA kernels of the merge family, run on the host through the real ops: the family's ordinary
tests in three orders of threads, on small problems. `FASTOPS_SIMT=1 pytest tests/merge` runs all.
"""

from __future__ import annotations

import pytest
import torch

import fastops
from tests.merge import test_derivatives, test_match, test_merge, test_plan
from tests.merge.problems import Problem, check_plan
from tests.numerics import FLOATS
from tests.simt.emulator import launches

pytestmark = pytest.mark.usefixtures("order")


@pytest.mark.parametrize("dtype", FLOATS)
def test_match_kernel(dtype: torch.dtype) -> None:
    # Warps side by side by destinations, or all by sources; sources that do not stay in shared
    # memory; whole vectors and not.
    for size in ((2, 7, 16), (1, 197, 65), (2, 301, 136), (1, 40, 1608), (3, 140, 33)):
        Problem(test_match.randn(*size, dtype=dtype)).check_match()
    test_match.test_heads_are_averaged(dtype)
    test_match.test_token_lists(dtype)
    test_match.test_special_vectors(dtype)
    if dtype in (torch.float32, torch.bfloat16):
        for exponent in (-140, 120):
            test_match.test_magnitudes(exponent, dtype)


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("rows", ["position", "reference"])
def test_plan_kernel(levels: int | None, rows: str) -> None:
    test_plan.test_token_plan(rows, levels, (True, True), 2)
    test_plan.test_token_plan(rows, levels, (False, False), 5)
    test_plan.test_token_plan_with_lists_and_padding(rows)
    scores, matches = test_plan.random_scores(1, 700, 600, levels=levels)
    for r in (0, 1, 300, 700):
        args = (scores, matches, 1300, r, 1300)
        part = {**test_match.shuffled(1, 1300, 700, 600)}
        test_plan.same_plan(
            test_plan.plan_of_scores(*args, part, order=rows), *args[:4], part, order=rows
        )


@pytest.mark.parametrize("pool", [0, 3])
def test_select_kernel(pool: int) -> None:
    test_plan.test_select(pool)


@pytest.mark.parametrize("mode", test_merge.MODES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_rows(mode: str, dtype: torch.dtype) -> None:
    test_merge.test_merge(dtype, mode, True)
    test_derivatives.test_against_autograd_of_the_reference(dtype, mode)


def test_three_launches() -> None:
    x = test_match.randn(2, 50, 16)
    plan = fastops.match_tokens(x, r=9, class_token=True)
    fastops.merge_tokens((x, x.half(), x.double()), plan, size=torch.ones(2, 50))
    assert launches() == ["merge match", "merge plan", "merge rows"]
    check_plan(plan)


@pytest.mark.parametrize("mode", range(4))
def test_wild_plans(mode: int) -> None:
    test_merge.test_wild_plans_stay_in_bounds(mode)
