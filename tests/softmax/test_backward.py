"""The backward ops against their definitions in a wider dtype, and against plain PyTorch."""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.numerics import (
    EXPANDED_LAYOUTS,
    FLOATS,
    LAYOUTS,
    Error,
    Guarded,
    accumulator,
    assert_ratio,
    exact,
    exact_dtype,
    lay_out,
    measure,
    same_bits,
)
from tests.softmax.oracle import KINDS, Problem, op, usual_error
from tests.softmax.samples import booleans, integers, randn

pytestmark = pytest.mark.isa


@dataclass
class Backward:
    """softmax_backward or log_softmax_backward, given the output `y` of `problem`."""

    kind: str
    problem: Problem
    y: Tensor
    dy: Tensor
    dlse: Tensor | None = None
    dtype: torch.dtype | None = None

    @property
    def acc(self) -> torch.dtype:
        return accumulator(self.y.dtype, self.dtype or self.y.dtype)

    def run(self, out: Tensor | None = None) -> Tensor:
        args = self.problem.validity_args() | {
            "grad_lse": self.dlse,
            "zero_masked_rows": self.problem.zero_masked_rows,
        }
        name, dims = f"{self.kind}_backward", self.problem.dims
        if out is not None:
            return op(name).out(self.dy, self.y, dims, **args, out=out)
        return op(name)(self.dy, self.y, dims, **args, dtype=self.dtype)

    def check(self, dx: Tensor) -> None:
        p = self.problem
        assert dx.shape == self.y.shape
        reference, size = self.exact()
        dtypes = self.y.dtype, self.dy.dtype, dx.dtype
        luck = usual_gradient_error(self.kind, *dtypes, dlse=self.dlse is not None)
        assert_ratio(p.rows(dx), reference, self.peer(dx.dtype), size=size, luck=luck)
        excluded = p.rows(dx)[~p.takes_part()]
        assert (excluded == 0).all(), "an excluded element has a gradient"

    @np.errstate(all="ignore")
    def exact(self) -> tuple[np.ndarray, np.ndarray]:
        """(gradient, what the terms that were added up to it sum to without their signs)."""
        p, dtype = self.problem, exact_dtype(self.acc)
        part = p.takes_part().cpu().numpy()
        y, dy = (exact(p.rows(t), dtype) for t in (self.y, self.dy))
        dlse = dtype(0) if self.dlse is None else exact(p.per_row(self.dlse), dtype)
        scale = dtype(p.scale)
        if p.row_scale is not None:
            scale = scale * exact(p.per_row(p.row_scale), dtype)
        prob = y if self.kind == "softmax" else np.exp(y)
        terms = np.where(part, prob * dy if self.kind == "softmax" else dy, 0)
        total, spread = terms.sum(-1, keepdims=True), np.abs(terms).sum(-1, keepdims=True)
        if self.kind == "softmax":
            ds, size = prob * (dy - total + dlse), prob * (abs(dy) + spread + abs(dlse))
        else:
            ds, size = dy - prob * (total - dlse), abs(dy) + prob * (spread + abs(dlse))
            if p.zero_masked_rows:
                ds = np.where((y == -np.inf).all(-1, keepdims=True), 0, ds)
        return np.where(part, ds * scale, 0), np.where(part, size * abs(scale), 0)

    def peer(self, dtype: torch.dtype) -> Tensor:
        p, part = self.problem, self.problem.takes_part()
        y, dy = (p.rows(t).to(self.acc) for t in (self.y, self.dy))
        dy = dy.masked_fill(~part, 0)
        dlse = 0 if self.dlse is None else p.per_row(self.dlse)
        if self.kind == "softmax":
            y = y.masked_fill(~part, 0)
            ds = y * (dy - (y * dy).sum(-1, keepdim=True) + dlse)
        else:
            ds = dy - y.exp() * (dy.sum(-1, keepdim=True) - dlse)
            if p.zero_masked_rows:
                ds = ds.masked_fill((y == -math.inf).all(-1, keepdim=True), 0)
        ds = ds * p.scale
        if p.row_scale is not None:
            ds = ds * p.per_row(p.row_scale)
        return ds.masked_fill(~part, 0).to(dtype)


@functools.cache
def usual_gradient_error(kind: str, *dtypes: torch.dtype, dlse: bool) -> Error:
    """The peer's error on a sample large enough to leave nothing to chance; dtypes of y, dy, dx.
    With half y and dy an fp64 accumulator is exact, unless a dlse of its own precision joins in."""
    y = randn(100, 700, dtype=torch.float64).softmax(-1)
    y = (y if kind == "softmax" else y.log()).to(dtypes[0])
    dy = randn(100, 700, dtype=dtypes[1], key=1)
    sample = Backward(kind, Problem(x=y), y, dy, dtype=dtypes[2])
    sample.dlse = randn(100, dtype=sample.acc, key=2) / 3 if dlse else None
    reference, size = sample.exact()
    # A row's total is rounded once at least, by eps / 2 of the half of `size` that is the total's;
    # where dy is constant nothing else is left. assert_ratio allows twice what is said here.
    one_rounding = Error(0, torch.finfo(sample.acc).eps / 8)
    return measure(sample.peer(dtypes[2]), reference, size).worse(one_rounding)


def backward(kind: str, problem: Problem, *, key: int = 5, dlse: bool = False) -> Backward:
    """The backward problem of a forward one: y from the op, dy random in y's layout."""
    y, lse = op(f"{kind}_lse")(problem.x, problem.dims, **problem.forward_args())
    dy = torch.empty_like(y)
    dy.copy_(randn(*y.shape, dtype=y.dtype, device=y.device.type, key=key))
    grad_lse = randn(*lse.shape, dtype=lse.dtype, device=y.device.type, key=key) if dlse else None
    return Backward(kind, problem, y, dy, grad_lse)


def check_both(problem: Problem, **args) -> None:
    for kind in KINDS:
        case = backward(kind, problem, **args)
        case.check(case.run())


SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129, 255, 257, 511, 513,
         1000, 1025, 2049, 4097, 8191, 16_385, 40_000, 65_537, 131_073]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", SIZES)
def test_sizes(n, dtype, device):
    x = randn(max(1, min(67, 8_000 // n)), n, dtype=dtype, device=device, spread=2)
    check_both(Problem(x=x))
    if n < 5000:
        check_both(Problem(x=x), dlse=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 5, 16, 63, 65, 130, 515])
@pytest.mark.parametrize("kind", KINDS)
def test_alignments(kind, dtype, n, device):
    """y, dy and dx each start elsewhere in a cache line; NaN beside the inputs, red zones beside
    the output."""
    line = 64 // torch.empty(0, dtype=dtype).element_size()
    case = backward(kind, Problem(x=randn(3, n, dtype=dtype, device=device)))
    y, dy = case.y, case.dy
    for start in range(line):
        case.y = lay_out(y, "contiguous", start=start)
        case.dy = lay_out(dy, "contiguous", start=(start * 3 + 1) % line)
        dx = Guarded(tuple(y.shape), dtype, device=device, start=(start * 5 + 2) % line)
        case.run(out=dx.tensor)
        dx.assert_intact()
        case.check(dx.tensor)


@pytest.mark.parametrize("dim", [0, 1, 2, (0, 1), (1, 2), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("layout", [*LAYOUTS, *EXPANDED_LAYOUTS])
def test_layouts(layout, dim, device):
    """The gradient expanded (as a sum's gradient is), y and dx as well."""
    for dtype, kind in itertools.product(FLOATS, KINDS):
        case = backward(kind, Problem(x=randn(5, 7, 67, dtype=dtype, device=device), dim=dim))
        y, dy = case.y, case.dy
        for y_layout in ("contiguous", "transposed", "apart"):
            case.y, case.dy = lay_out(y, y_layout), lay_out(dy, layout)
            case.check(case.run())
        if layout in LAYOUTS:
            case.y = lay_out(y, "first dim innermost")
            dx = Guarded(tuple(y.shape), dtype, layout, device=device)
            case.run(out=dx.tensor)
            dx.assert_intact()
            case.check(dx.tensor)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "shape", [(4, 33, 65), (3, 500, 18), (1, 70, 1029), (2, 20_001, 3), (1, 4099, 130)]
)
def test_columns(shape, dtype, device):
    check_both(Problem(x=randn(*shape, dtype=dtype, device=device), dim=1), dlse=True)


@pytest.mark.parametrize("out_dtype", FLOATS)
@pytest.mark.parametrize("grad_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes(dtype, grad_dtype, out_dtype, device):
    """Any dtype of y, dy and dx: with a float32 softmax of a bf16 x, all three differ."""
    for kind, n, dim in itertools.product(KINDS, (5, 70, 1027), (-1, 0)):
        problem = Problem(x=randn(4, n, dtype=dtype, device=device), dim=dim)
        case = backward(kind, problem)
        case.dy = case.dy.to(grad_dtype)
        case.dtype = out_dtype
        dx = case.run()
        assert dx.dtype == out_dtype
        case.check(dx)


def masked(shape, dtype, device, *, dim=-1, **args) -> Problem:
    rows = shape[:-1]
    return Problem(
        x=randn(*shape, dtype=dtype, device=device),
        dim=dim,
        mask=booleans(*shape, device=device, share=0.8),
        scale=-0.6,
        row_scale=randn(*rows, dtype=accumulator(dtype), device=device, key=2),
        **args,
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 6, 17, 64, 130, 2050, 70_001])
@pytest.mark.parametrize("zero", [False, True])
def test_masking(zero, n, dtype, device):
    rows = max(2, min(19, 20_000 // n))
    problem = masked((rows, n), dtype, device, zero_masked_rows=zero)
    problem.mask[0] = False
    check_both(problem)
    lengths = integers(1, n, rows, device=device)
    check_both(masked((rows, n), dtype, device, lengths=lengths, zero_masked_rows=zero), dlse=True)
    if n < 5000:
        for causal in (1, 2):
            check_both(masked((2, rows, n), dtype, device, causal=causal, zero_masked_rows=zero))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [0, 1, (0, 1), (0, 2)])
def test_masking_over_other_dims(dim, dtype, device):
    x = randn(9, 21, 35, dtype=dtype, device=device)
    dims = (dim,) if isinstance(dim, int) else dim
    rows = [size for d, size in enumerate(x.shape) if d not in dims]
    n = math.prod(x.shape[d] for d in dims)
    check_both(
        Problem(
            x=x,
            dim=dim,
            mask=booleans(9, 21, 1, device=device, share=0.8),
            lengths=integers(1, n, *rows, device=device),
            scale=0.3,
            row_scale=randn(*rows, dtype=accumulator(dtype), device=device, key=2),
            zero_masked_rows=True,
        ),
        dlse=True,
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [7, 64, 1030, 40_001])
@pytest.mark.parametrize("dim", [-1, 0])
def test_excluded_gradients_have_no_influence(dim, n, dtype, device):
    for kind in KINDS:
        mask = booleans(5, n, device=device)
        mask[0], mask[1, 0] = False, True
        lengths = integers(1, n, 5, device=device)
        mask, x = (t.t().contiguous() if dim == 0 else t for t in (mask, randn(5, n, dtype=dtype)))
        problem = Problem(
            x=x.to(device), dim=dim, mask=mask, lengths=lengths, zero_masked_rows=True
        )
        case = backward(kind, problem)
        clean = case.run()
        part = problem.takes_part()
        for poison in (math.nan, math.inf, torch.finfo(dtype).max):
            shaped = part.t() if dim == 0 else part
            case.dy = torch.where(shaped, case.dy, torch.full_like(case.dy, poison))
            assert same_bits(case.run(), clean), (kind, poison)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 9, 64, 1000, 70_001])
@pytest.mark.parametrize("dim", [-1, 0])
def test_masked_rows_have_zero_gradient(dim, n, dtype, device):
    """masked_rows="zero": rows that were all -inf, by value or by mask, are exactly 0."""
    for kind, how in itertools.product(KINDS, ("value", "mask", "lengths")):
        x = randn(7, n, dtype=dtype, device=device)
        gone = torch.tensor([0, 1, 1, 0, 0, 1, 0], dtype=torch.bool, device=device)
        problem = Problem(x=x, zero_masked_rows=True)
        if how == "value":
            problem.x = x.masked_fill(gone[:, None], -math.inf)
        elif how == "mask":
            problem.mask = ~gone[:, None].expand(7, n)
        else:
            problem.lengths = torch.where(gone, 0, n)
        if dim == 0:
            problem.x, problem.dim = problem.x.t().contiguous(), 0
            problem.mask = None if problem.mask is None else problem.mask.t()
        case = backward(kind, problem)
        dx = case.run()
        case.check(dx)
        assert (problem.rows(dx)[gone] == 0).all(), how
        assert n == 1 or (problem.rows(dx)[~gone] != 0).any()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_special_gradients(value, dtype, device):
    """As torch's own backward: NaN where it has NaN, in the row concerned and no other."""
    for kind, n, dim in itertools.product(KINDS, (3, 40, 1500), (-1, 0)):
        x = randn(5, n, dtype=dtype, device=device)
        x = (x if dim else x.t().contiguous()).requires_grad_()
        y = getattr(torch, kind)(x, dim)
        dy = randn(*y.shape, dtype=dtype, device=device)
        dy.select(1 + dim if dim == -1 else 1, 2).view(-1)[n // 2] = value
        y.backward(dy)
        dx = op(f"{kind}_backward")(dy, y.detach(), [dim])
        assert torch.equal(dx.isnan(), x.grad.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_beyond_any_scratch(dtype, device):
    check_both(Problem(x=randn(1, 1_048_579, dtype=dtype, device=device)), dlse=True)


# ---- logsumexp ----------------------------------------------------------------------------------


def lse_backward(problem: Problem, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(grad, lse, dx) of logsumexp_backward for a random grad."""
    p = problem
    lse = op("logsumexp")(p.x, p.dims, **p.score_args())
    grad = randn(*lse.shape, dtype=lse.dtype, device=p.x.device.type, key=3)
    if out is None:
        return grad, lse, op("logsumexp_backward")(grad, p.x, lse, p.dims, **p.score_args())
    call = op("logsumexp_backward").out
    return grad, lse, call(grad, p.x, lse, p.dims, **p.score_args(), out=out)


@np.errstate(all="ignore")
def check_lse_backward(problem: Problem, out: Tensor | None = None) -> None:
    """dx = grad * softmax(scores) * scale, 0 where excluded."""
    grad, _, dx = lse_backward(problem, out)
    grad = problem.per_row(grad)
    factor = grad.double() * problem.scale
    if problem.row_scale is not None:
        factor = factor * problem.per_row(problem.row_scale).double()
    factor = factor.cpu().numpy().astype(exact_dtype(problem.acc))
    part = problem.takes_part()
    inside = part.cpu().numpy()
    # exp(s - lse) inherits the rounding of lse: what one costs grows with |lse|.
    cost = np.abs(problem.exact("logsumexp")) + 1
    reference = np.where(inside, problem.exact("softmax") * factor, 0)
    size = np.where(inside, problem.size("softmax") * np.abs(factor) * cost, 0)
    wide = problem.replace(dtype=problem.acc)
    peer = wide.peer("softmax") * torch.from_numpy(factor.astype(np.float64)).to(
        grad.device, problem.acc
    )
    peer = peer.masked_fill(~part, 0).to(dx.dtype)
    luck = usual_error("softmax", problem.x.dtype, dx.dtype)
    assert_ratio(problem.rows(dx), reference, peer, size=size, luck=luck)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 3, 16, 65, 130, 1025, 5003, 90_001])
def test_logsumexp_sizes(n, dtype, device):
    x = randn(max(1, min(37, 20_000 // n)), n, dtype=dtype, device=device, spread=2)
    check_lse_backward(Problem(x=x))


@pytest.mark.parametrize("layout", [*LAYOUTS, *EXPANDED_LAYOUTS])
@pytest.mark.parametrize("dim", [0, 1, 2, (0, 2), (1, 2)])
def test_logsumexp_layouts(dim, layout, device):
    for dtype in FLOATS:
        x = lay_out(randn(5, 7, 67, dtype=dtype, device=device), layout)
        check_lse_backward(Problem(x=x, dim=dim))
        if layout in LAYOUTS:
            dx = Guarded(tuple(x.shape), dtype, layout, device=device)
            check_lse_backward(Problem(x=x, dim=dim), out=dx.tensor)
            dx.assert_intact()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [0, -1])
def test_logsumexp_masking(dim, dtype, device):
    for n in (1, 9, 64, 1030):
        mask = booleans(6, n, device=device, share=0.8)
        mask[0] = mask[:, 0] = True
        x = randn(6, n, dtype=dtype, device=device).masked_fill(~mask, math.nan)
        bias = randn(6, n, dtype=dtype, device=device, key=1)
        rows = 6 if dim else n
        row_scale = randn(rows, dtype=accumulator(dtype), device=device, key=2)
        check_lse_backward(
            Problem(x=x, dim=dim, mask=mask, bias=bias, scale=0.3, row_scale=row_scale)
        )
        lengths = integers(1, 6 if dim == 0 else n, rows, device=device)
        clean = randn(6, n, dtype=dtype, device=device)
        check_lse_backward(Problem(x=clean, dim=dim, mask=mask, lengths=lengths))


@pytest.mark.parametrize("dtype", FLOATS)
def test_logsumexp_of_nothing(dtype, device):
    """A row without any element has lse -inf and no gradient: 0, not exp(-inf + inf)."""
    x = randn(4, 50, dtype=dtype, device=device)
    mask = torch.tensor([[False], [True], [False], [True]], device=device).expand(4, 50)
    _, lse, dx = lse_backward(Problem(x=x, mask=mask))
    assert (lse[[0, 2]] == -math.inf).all()
    assert (dx[[0, 2]] == 0).all() and (dx[[1, 3]] != 0).all()
