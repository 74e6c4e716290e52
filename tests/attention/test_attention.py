"""out, lse and every gradient of the kernels, against the reference by the ratio rule."""

from __future__ import annotations

import pytest
import torch

import fastops
from fastops import BlockMask
from tests.attention.problems import DTYPES, Problem, check
from tests.numerics import EMULATED, Guarded, assert_repeats, lay_out, same_bits

pytestmark = pytest.mark.isa

LENGTHS = [(1, 1), (17, 113), (113, 17), (203, 203)]
KINDS = (
    "dense",
    "nothing",
    "every block",
    "all partial",
    "causal",
    "sparse",
    "half blocks",
    "most",
)
HEADS = {"mha": (2, 2), "gqa": (4, 2), "mqa": (3, 1)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", HEADS)
def test_masks(dtype, kind, heads):
    count, kv = HEADS[heads]
    problem = Problem.make(dtype, heads=count, kv_heads=kv, sq=113, skv=150, d=64, kind=kind)
    check(problem, problem.ours())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [(1, 7), (33, 20), (40, 72), (128, 128), (256, 255)])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_sizes(dtype, dims, lengths):
    problem = Problem.make(dtype, sq=lengths[0], skv=lengths[1], d=dims[0], dv=dims[1])
    check(problem, problem.ours())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("length", [1, 17, 113, 203, 799])
def test_lengths(dtype, heads, length):
    """As many queries as keys, every kind of mask and some widths among them."""
    count, kv = HEADS[heads]
    at = DTYPES.index(dtype) + 3 * list(HEADS).index(heads) + length
    kind, d = KINDS[at % len(KINDS)], (32, 64, 96, 128, 256)[at % 5]
    problem = Problem.make(dtype, heads=count, kv_heads=kv, sq=length, skv=length, d=d, kind=kind)
    check(problem, problem.ours())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [16, 32, 128, (16, 128), (128, 16), (32, 64)], ids=str)
def test_block_sizes(dtype, block):
    problem = Problem.make(dtype, heads=4, sq=140, skv=203, d=48, batch=2)
    check(problem, problem.ours(block))


@pytest.mark.parametrize("mask_batch, mask_heads", [(1, 1), (1, 4), (2, 1)])
def test_broadcast_masks(mask_batch, mask_heads):
    problem = Problem.make(
        batch=2, heads=4, sq=70, skv=50, mask_batch=mask_batch, mask_heads=mask_heads
    )
    check(problem, problem.ours(32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_extras(dtype):
    problem = Problem.make(dtype, sq=50, skv=60, kind="sparse", extras=False)
    check(problem, problem.ours(16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_rows(dtype):
    """A row that keeps nothing: 0, -inf and no gradient; with a sink lse is the sink."""
    problem = Problem.make(dtype, sq=40, skv=64, kind="half", extras=False)
    problem.keep[:, :, 16:32] = False
    out, lse, dq, dk, dv = problem.ours(16)
    assert (out[:, :, 16:32] == 0).all() and (lse[:, :, 16:32] == -torch.inf).all()
    assert (dq[:, :, 16:32] == 0).all() and dk.isfinite().all() and dv.isfinite().all()
    q, k, v = problem.inputs
    sinks = torch.tensor([0.5, -3.0])
    out, lse = fastops.block_sparse_attention(
        q, k, v, problem.mask(16), sinks=sinks, return_lse=True
    )
    assert (out[:, :, 16:32] == 0).all()
    torch.testing.assert_close(lse[0, :, 16:32], sinks[:, None].expand(2, 16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_keys_and_no_queries(dtype):
    q, kv = torch.randn(1, 2, 5, 8).to(dtype), torch.randn(1, 2, 0, 8).to(dtype)
    q.requires_grad_()
    out, lse = fastops.block_sparse_attention(q, kv, kv, return_lse=True)
    assert (out == 0).all() and (lse == -torch.inf).all()
    out.sum().backward()
    assert (q.grad == 0).all()
    k = torch.randn(1, 2, 3, 8).to(dtype).requires_grad_()
    out = fastops.block_sparse_attention(torch.empty(1, 2, 0, 8, dtype=dtype), k, k)
    assert out.shape == (1, 2, 0, 8)
    out.sum().backward()
    assert (k.grad == 0).all()


def test_padding_by_key_bias():
    """-inf takes a key out: the same as keys that are not there."""
    problem = Problem.make(sq=40, skv=90, kind="dense", extras=False)
    q, k, v = problem.inputs
    bias = torch.zeros(1, 90)
    bias[:, 50:] = -torch.inf
    got = fastops.block_sparse_attention(q, k, v, key_bias=bias)
    torch.testing.assert_close(
        got, fastops.block_sparse_attention(q, k[:, :, :50], v[:, :, :50]), rtol=1e-5, atol=1e-6
    )
    bias[:] = -torch.inf
    out, lse = fastops.block_sparse_attention(q, k, v, key_bias=bias, return_lse=True)
    assert (out == 0).all() and (lse == -torch.inf).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [None, 16, 64, (128, 32)], ids=str)
def test_dense_is_sdpa(dtype, block):
    """Without a list, and with one of every block."""
    problem = Problem.make(dtype, sq=100, skv=130, d=64, kind="every block", extras=False)
    q, k, v = problem.inputs
    mask = None if block is None else problem.mask(block)
    got = fastops.block_sparse_attention(q, k, v, mask, scale=0.2)
    wide = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), scale=0.2
    )
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.2)
    ours, peer = ((t.double() - wide).abs().max() for t in (got, theirs))
    assert ours <= 2 * peer + torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores(dtype):
    """Scores far from 0, and values that are not finite stay in their rows."""
    problem = Problem.make(dtype, sq=33, skv=64, kind="most", extras=False)
    q, k, v = problem.inputs
    problem.inputs[0] = q * 60
    check(problem, problem.ours(16)[:2])
    v[0, 0, 5] = torch.nan
    out = fastops.block_sparse_attention(q, k, v, problem.mask(16))
    sees = problem.keep[0, 0, :, 5]
    assert out[0, 0, sees].isnan().all() and out[0, 1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["transposed heads", "padded rows", "odd start", "packed qkv"])
def test_layouts_and_red_zones(dtype, layout):
    """Any strides with unit last one: NaN around the inputs never shows, in values or gradients."""
    problem = Problem.make(dtype, heads=3, kv_heads=3, sq=45, skv=45, d=24, extras=False)
    plain = problem.ours(16)
    if layout == "packed qkv":
        packed = torch.stack(problem.inputs, 2).transpose(1, 3).contiguous().transpose(1, 3)
        problem.inputs = [packed[:, :, i] for i in range(3)]
    elif layout == "transposed heads":
        problem.inputs = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in problem.inputs]
    else:
        problem.inputs = [lay_out(t, layout) for t in problem.inputs]
    leaves = [t.detach().requires_grad_() for t in problem.inputs]
    mask = problem.mask(16)
    out, lse = fastops.block_sparse_attention(*leaves, mask, return_lse=True)
    if EMULATED:  # on CUDA 16-bit rows off 16 bytes take another kernel, which rounds elsewhere
        check(problem, [out.detach(), lse.detach()])
    else:
        assert same_bits(out, plain[0]) and same_bits(lse, plain[1])
    grad = torch.ops.fastops.block_sparse_attention_backward(
        problem.grads_in()[0], None, *problem.inputs, out.detach(), lse.detach(),
        [*mask.lists, mask.bits, *mask.transposed()], [16, 16, 1, 3], 24**-0.5, None, None,
        [True, True, True, False, False],
    )  # fmt: skip
    assert all(g.isfinite().all() for g in grad)


def test_inputs_are_not_written_to():
    tensors = [Guarded((1, 2, 40, 32), torch.bfloat16, "padded rows") for _ in range(3)]
    for t in tensors:
        t.tensor.copy_(torch.randn(1, 2, 40, 32))
        t.before = t.storage.clone()
    fastops.block_sparse_attention(*(t.tensor for t in tensors))
    for t in tensors:
        t.assert_untouched()


WILD = [-(2**31), -1, 0, 1, 2, 3, 7, 1000, 2**31 - 1]


def edited(mask, share, generator):
    """A mask's lists and their transpose, but for its bits a share of the numbers wild."""
    lists = [*mask.lists, mask.bits, *mask.transposed()]
    for i in (0, 1, 2, 3, 5, 6, 7, 8):
        wild = torch.tensor(WILD)[torch.randint(len(WILD), lists[i].shape, generator=generator)]
        hit = torch.rand(lists[i].shape, generator=generator) < share
        lists[i] = torch.where(hit, wild.to(lists[i].dtype), lists[i])
    return lists


@pytest.mark.parametrize("dtype", DTYPES)
def test_edited_lists_stay_in_bounds(dtype):
    """Whatever a list says, nothing outside the tensors is read or written."""
    problem = Problem.make(dtype, sq=70, skv=90, d=16, kind="half", extras=False)
    g = torch.Generator().manual_seed(0)
    for _ in range(10):
        mask = problem.mask(32)
        lists = edited(mask, 0.4, g)
        shape = [32, 32, mask.batch, mask.heads]
        out, lse = torch.ops.fastops.block_sparse_attention(*problem.inputs, lists[:5], shape, 0.25)
        assert out.isfinite().all()
        grads = torch.ops.fastops.block_sparse_attention_backward(
            problem.grads_in()[0], None, *problem.inputs, out, lse, lists, shape, 0.25, None, None,
            [True, True, True, False, False],
        )  # fmt: skip
        assert [t.shape for t in grads[:3]] == [t.shape for t in problem.inputs]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_around_edited_lists_is_read(dtype):
    """Lists that are pieces of longer tensors: what lies around them, and NaN around q, k and v,
    changes no bit of the results."""
    problem = Problem.make(dtype, sq=70, skv=90, d=16, kind="half", extras=False)
    problem.inputs = [lay_out(t, "padded rows") for t in problem.inputs]
    g = torch.Generator().manual_seed(1)
    for _ in range(10):
        mask = problem.mask(32)
        lists = edited(mask, 0.2, g)
        results = []
        for around in (0, 1, -1, 2):  # blocks and patterns that there are, and that there are not
            pieces = []
            for t in lists:
                edge = torch.full((40,), around, dtype=t.dtype)
                pieces.append(torch.cat([edge, t.flatten(), edge])[40:-40].view(t.shape))
            rest = ([32, 32, mask.batch, mask.heads], 0.25, None, None)
            out, lse = torch.ops.fastops.block_sparse_attention(*problem.inputs, pieces, *rest)
            grads = torch.ops.fastops.block_sparse_attention_backward(
                problem.grads_in()[0], None, *problem.inputs, out, lse, pieces, *rest,
                [True, True, True, False, False],
            )  # fmt: skip
            assert all(t.isfinite().all() for t in (out, *grads))
            results.append([out, lse, *grads])
        for again in results[1:]:
            assert all(map(same_bits, again, results[0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_determinism(dtype):
    """A thousand times the same bits, forward and backward, on any number of threads."""
    problem = Problem.make(dtype, heads=4, kv_heads=2, sq=130, skv=130, d=32)
    mask, (*heads, sinks, bias) = problem.mask(32), problem.inputs
    rest = ([32, 32, 1, 4], 0.2, sinks, bias)
    lists = [*mask.lists, mask.bits, *mask.transposed()]

    def run():
        out, lse = torch.ops.fastops.block_sparse_attention(*heads, lists, *rest)
        grads = torch.ops.fastops.block_sparse_attention_backward(
            *problem.grads_in(), *heads, out, lse, lists, *rest, [True] * 5
        )
        return [out, lse, *grads]

    assert_repeats(run, 1000)


def test_duplicates_in_a_list_count_twice():
    """Documented by the kernels' loop: a block listed twice weighs twice."""
    q, k, v = (torch.randn(1, 1, 16, 8) for _ in range(3))
    once = BlockMask.from_dense(torch.ones(1, 1, dtype=torch.bool), 16)
    lists = [torch.tensor([0, 2]), torch.tensor([0, 0], dtype=torch.int32), *once.lists[2:]]
    out, lse = torch.ops.fastops.block_sparse_attention(
        q, k, v, [*lists, once.bits], [16, 16, 1, 1], 0.3
    )
    want, single = torch.ops.fastops.block_sparse_attention(
        q, k, v, [*once.lists, once.bits], [16, 16, 1, 1], 0.3
    )
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(lse, single + torch.tensor(2.0).log())
