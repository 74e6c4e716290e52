"""What is rare: numbers that are not finite, nothing to do, very long rows, scores at the ends."""

from __future__ import annotations

import pytest
import torch

import fastops
from fastops import BlockMask
from fastops.attention.reference import attention_reference
from tests.attention.problems import DTYPES, Problem, check
from tests.numerics import EMULATED, lay_out, same_bits

pytestmark = pytest.mark.isa


def same_specials(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """NaN and infinities at the same places, and close elsewhere."""
    torch.testing.assert_close(
        got.double(), want.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "blocks"])
def test_not_finite(dtype, which, value, dense):
    """One such number spoils the rows that it reaches in plain PyTorch, and no others."""
    problem = Problem.make(dtype, sq=40, skv=70, d=20, extras=False)
    whole = torch.rand(1, 2, 3, 5, generator=torch.Generator().manual_seed(3)) < 0.7
    keep = whole.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, :, :40, :70]
    index = "qkv".index(which)
    problem.inputs[index][0, 1, 17, 3] = value
    q, k, v = problem.inputs
    mask = None if dense else BlockMask.from_dense(whole, 16, (40, 70))
    out, lse = fastops.block_sparse_attention(q, k, v, mask, return_lse=True)
    wide = [t.double() for t in (q, k, v)]
    want, want_lse = attention_reference(*wide, None if dense else keep)
    if not dense and which == "v":  # a block that is left out is not read, whatever is in it
        sees = keep[0, 1, :, 17]
        same = fastops.block_sparse_attention(q, k, torch.where(v.isfinite(), v, 0), mask)
        assert same_bits(out[0, 1, ~sees], same[0, 1, ~sees])
        assert not out[0, 1, sees][:, 3].isfinite().any()
        return
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    if dense or which == "q":
        same_specials(out, want, tolerance)
        same_specials(lse, want_lse, tolerance)
    else:
        sees = keep[0, 1, :, 17]
        same_specials(out[0, 1, ~sees], want[0, 1, ~sees].nan_to_num(), tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_key_bias_of_minus_infinity(dtype):
    """With it on some keys, on whole blocks of them and on all of a sample: as keys left out, in
    values and in every gradient, and the bias there has gradient 0."""
    problem = Problem.make(dtype, batch=2, heads=2, sq=50, skv=90, d=24, kind="most")
    bias = problem.inputs[4]
    bias[0, :, 10:70] = -torch.inf
    bias[0, 1, ::3] = -torch.inf
    bias[1] = -torch.inf
    got = problem.ours(16)
    check(problem, got)
    assert (got[6][bias == -torch.inf] == 0).all()
    assert (got[0][1] == 0).all() and all((g[1] == 0).all() for g in got[2:5])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-4, 30.0, 1e4])
@pytest.mark.parametrize("scale", [0.25, -0.25, 0.0])
def test_scores_near_and_far(dtype, size, scale):
    """Scores of any size, scaled by any number: rows still sum to one."""
    q, k, _ = Problem.make(dtype, sq=40, skv=150, d=16, kind="dense", extras=False).inputs
    q = (q.float() * size).to(dtype)
    k = (k.float() * 1.0).to(dtype)
    v = torch.ones(1, 2, 150, 7, dtype=dtype)
    mask = BlockMask.from_element_mask(torch.ones(40, 150, dtype=torch.bool).tril(60), 32)
    out, lse = fastops.block_sparse_attention(q, k, v, mask, scale=scale, return_lse=True)
    torch.testing.assert_close(out.float(), torch.ones_like(out).float(), rtol=5e-3, atol=5e-3)
    _, want = attention_reference(
        *(t.double() for t in (q, k, v)), mask.to_dense(), scale=scale
    )  # fmt: skip
    torch.testing.assert_close(lse.double(), want, rtol=1e-5, atol=1e-4 + 2e-6 * size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [(3, 3), (1, 1), (2, 256), (256, 1), (31, 65)], ids=str)
@pytest.mark.parametrize("start", [1, 3, 5])
def test_odd_channels_off_alignment(dtype, dims, start):
    """Few or odd channels, Dv != D, and tensors that start anywhere, NaN around them."""
    problem = Problem.make(dtype, heads=2, kv_heads=1, sq=37, skv=70, d=dims[0], dv=dims[1])
    plain = problem.ours(32)
    problem.inputs[:3] = [lay_out(t, "padded rows", start=start) for t in problem.inputs[:3]]
    q, k, v, sinks, bias = problem.inputs
    out, lse = fastops.block_sparse_attention(
        q, k, v, problem.mask(32), sinks=sinks, key_bias=bias, return_lse=True
    )
    if EMULATED:  # rows off 16 bytes take another kernel
        check(problem, [out, lse])
    else:
        assert same_bits(out, plain[0]) and same_bits(lse, plain[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(0, 4, 20, 30), (2, 4, 0, 30), (2, 4, 20, 0), (2, 4, 0, 0)], ids=str
)
@pytest.mark.parametrize("masked", [False, True])
def test_nothing_to_do(dtype, shape, masked):
    """No samples, no queries, no keys: gradients are 0 and have the right shapes."""
    batch, heads, sq, skv = shape
    tensors = [
        torch.randn(batch, heads, sq, 8).to(dtype), torch.randn(batch, 2, skv, 8).to(dtype),
        torch.randn(batch, 2, skv, 5).to(dtype), torch.randn(heads), torch.randn(batch, heads, skv),
    ]  # fmt: skip
    leaves = [t.requires_grad_() for t in tensors]
    mask = (
        BlockMask.from_element_mask(torch.ones(sq, skv, dtype=torch.bool), 16) if masked else None
    )
    out, lse = fastops.block_sparse_attention(
        *leaves[:3], mask, sinks=leaves[3], key_bias=leaves[4], return_lse=True
    )
    assert out.shape == (batch, heads, sq, 5) and lse.shape == (batch, heads, sq)
    assert (out == 0).all()
    torch.testing.assert_close(lse, leaves[3][:, None].expand(lse.shape))
    grads = torch.autograd.grad(out.sum() + lse.sum(), leaves)
    for grad, t in zip(grads, tensors, strict=True):
        assert grad.shape == t.shape
    assert all((g == 0).all() for g in (*grads[:3], grads[4]))
    torch.testing.assert_close(grads[3], torch.full((heads,), float(batch * sq)))  # lse is the sink


@pytest.mark.parametrize(
    ("dtype", "sq", "skv"),
    [(torch.float32, 4224, 4224), (torch.bfloat16, 203, 4224), (torch.float16, 4224, 113)],
)
def test_longest(dtype, sq, skv):
    """Many chunks of blocks of 128 a row, whole and partial, forward and backward."""
    problem = Problem.make(dtype, heads=1, kv_heads=1, sq=sq, skv=skv, d=32, dv=16, kind="causal")
    g = torch.Generator().manual_seed(0)
    blocks = torch.rand(1, 1, -(-sq // 128), -(-skv // 128), generator=g) < 0.7
    blocks = blocks.repeat_interleave(128, 2).repeat_interleave(128, 3)
    problem.keep = problem.keep & blocks[:, :, :sq, :skv]
    check(problem, problem.ours(128))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_maxima(dtype):
    """Rows of many chunks, without a bias: their maxima rise some times, and what was summed before
    is brought to each of them."""
    problem = Problem.make(
        dtype, heads=1, kv_heads=1, sq=256, skv=4096, d=64, kind="dense", extras=False
    )
    check(problem, problem.ours(64))
