"""What a first-class op does besides being right: derivatives as autograd wants them, fake tensors,
compile, export, vmap, autocast, arrays, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastops
from fastops import _interop
from fastops.attention.reference import attention_reference
from tests.attention.problems import DTYPES, Problem
from tests.numerics import same_bits

OPS = torch.ops.fastops


def op_arguments(dtype, *, with_mask=True, grad=False):
    problem = Problem.make(dtype, heads=4, kv_heads=2, sq=40, skv=50, d=16)
    mask = problem.mask(16)
    lists = [*mask.lists, mask.bits, *mask.transposed()] if with_mask else []
    shape = [16, 16, 1, 4] if with_mask else [64, 64, 1, 1]
    q, k, v, sinks, bias = (t.requires_grad_(grad) for t in problem.inputs)
    return problem, (q, k, v, lists, shape, 0.25, sinks, bias)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(with_mask, grad):
    _, arguments = op_arguments(torch.float32, with_mask=with_mask, grad=grad)
    torch.library.opcheck(OPS.block_sparse_attention, arguments)


def test_opcheck_backward():
    problem, (q, k, v, lists, shape, scale, sinks, bias) = op_arguments(torch.bfloat16)
    out, lse = OPS.block_sparse_attention(q, k, v, lists, shape, scale, sinks, bias)
    grad_out, grad_lse = problem.grads_in()
    for wanted in ([True] * 5, [False, True, False, True, False]):
        torch.library.opcheck(
            OPS.block_sparse_attention_backward,
            (
                grad_out, grad_lse, q, k, v, out, lse, lists, shape, scale, sinks, bias, wanted,
            ),
        )  # fmt: skip


def test_reference_gradcheck():
    q, k, v, sinks, bias = (
        t.double().requires_grad_()
        for t in Problem.make(heads=4, kv_heads=2, sq=5, skv=7, d=3).inputs
    )
    keep = torch.rand(1, 4, 5, 7) < 0.6
    keep[:, :, 2] = False

    def call(q, k, v, sinks, bias):
        return attention_reference(q, k, v, keep, sinks=sinks, key_bias=bias)

    assert torch.autograd.gradcheck(call, (q, k, v, sinks, bias))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(5))
def test_only_what_needs_a_gradient(index, dtype):
    """A gradient does not depend on which others are asked for, and the others get none."""
    problem = Problem.make(heads=4, kv_heads=2, sq=40, skv=50, d=16, dtype=dtype)
    every = problem.ours(16)[2:]
    leaves = [t.detach().requires_grad_(i == index) for i, t in enumerate(problem.inputs)]
    out, lse = fastops.block_sparse_attention(
        *leaves[:3], problem.mask(16), sinks=leaves[3], key_bias=leaves[4], return_lse=True
    )
    grad_out, grad_lse = problem.grads_in()
    ((out * grad_out).sum() + (lse * grad_lse).sum()).backward()
    assert same_bits(leaves[index].grad, every[index])
    assert all(t.grad is None for i, t in enumerate(leaves) if i != index)


def test_key_bias_shapes():
    problem = Problem.make(batch=2, heads=4, kv_heads=2, sq=20, skv=30, d=8)
    q, k, v, _, full = problem.inputs
    shared, flat = full[:1, :1].expand(2, 1, 30), full[..., :1].expand(2, 4, 30)
    for bias in (full[:, 0], full[:, :1], shared, flat):
        leaf = bias.detach().clone().requires_grad_()
        other = bias.detach().clone().double().requires_grad_()
        fastops.block_sparse_attention(q, k, v, problem.mask(16), key_bias=leaf).sum().backward()
        attention_reference(q.double(), k.double(), v.double(), problem.keep, key_bias=other)[
            0
        ].sum().backward()
        torch.testing.assert_close(leaf.grad.double(), other.grad, rtol=1e-4, atol=1e-4)
        strided = fastops.block_sparse_attention(q, k, v, key_bias=bias)
        assert same_bits(strided, fastops.block_sparse_attention(q, k, v, key_bias=leaf.detach()))


@pytest.mark.parametrize("index", range(5))
def test_no_second_derivative(index):
    """Refused where it is asked for, whichever argument alone has a gradient; the first is not."""
    problem = Problem.make(sq=20, skv=30, d=8)
    leaves = [t.detach().requires_grad_(i == index) for i, t in enumerate(problem.inputs)]
    out = fastops.block_sparse_attention(*leaves[:3], sinks=leaves[3], key_bias=leaves[4])
    leaf = leaves[index]
    (plain,) = torch.autograd.grad(out.square().sum(), leaf, retain_graph=True)
    (first,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
    assert same_bits(first, plain)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        torch.autograd.grad(first.sum(), leaf)


def test_torch_func():
    problem = Problem.make(batch=3, heads=4, kv_heads=2, sq=20, skv=30, d=8, mask_batch=1)
    mask, (q, k, v) = problem.mask(16), problem.inputs[:3]

    def total(q, k, v):
        return fastops.block_sparse_attention(q, k, v, mask).square().sum()

    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    wanted = torch.autograd.grad(total(*leaves), leaves)
    got = torch.func.grad(total, (0, 1, 2))(q, k, v)
    each = torch.vmap(torch.func.grad(lambda *t: total(*(s[None] for s in t)), (0, 1, 2)))(q, k, v)
    for a, b, c in zip(got, each, wanted, strict=True):
        assert same_bits(a, c) and same_bits(b, c)


def test_gradient_without_lists_by_key():
    _, (q, k, v, lists, *rest) = op_arguments(torch.float32, grad=True)
    out, _ = OPS.block_sparse_attention(q, k, v, lists[:5], *rest)
    with pytest.raises(RuntimeError, match="needs the lists by key block"):
        out.sum().backward()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend):
    problem = Problem.make(heads=4, kv_heads=2, sq=40, skv=50, d=16)
    mask = problem.mask(16)
    mask.transposed()

    def layer(q, k, v, sinks, bias):
        out, lse = fastops.block_sparse_attention(
            q * 2, k, v, mask, sinks=sinks, key_bias=bias, return_lse=True
        )
        return out.relu(), lse

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    results = []
    for run in (layer, compiled):
        leaves = [t.detach().clone().requires_grad_() for t in problem.inputs]
        out, lse = run(*leaves)
        results.append([out, lse, *torch.autograd.grad(out.sum() + lse.sum(), leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    """With gradients on, so that lists are transposed; the mask is as good as before afterwards."""
    mask = Problem.make(sq=40, skv=40, mask_heads=1).mask(16)
    module = fastops.nn.BlockSparseAttention(24, 4, num_kv_heads=2, sinks=True, block_mask=mask)
    x = torch.randn(2, 40, 24)
    program = torch.export.export(module, (x,), strict=strict)
    got, wanted = program.module()(x), module(x)
    torch.testing.assert_close(got, wanted)
    wanted.sum().backward()
    assert type(mask.transposed().offsets) is torch.Tensor


def test_one_compilation_for_any_mask():
    def count(graph, _):
        counted.append(graph)
        return graph

    def attend(q, mask):
        return fastops.block_sparse_attention(q, q, q, mask)

    counted = []
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend=count)
    q = torch.randn(1, 2, 100, 32)
    for left in (30, 10, 60, 80, 99, 31):
        mask = fastops.BlockMask.sliding_window(100, left, block_size=32)
        torch.testing.assert_close(compiled(q, mask), attend(q, mask))
    assert len(counted) <= 2  # fixed sizes, then any


def test_fake_tensors():
    for dtype in DTYPES:
        problem = Problem.make(dtype, heads=4, kv_heads=2, sq=9, skv=20, d=16, dv=5, kind="dense")
        q, k, v = problem.inputs[:3]
        real = fastops.block_sparse_attention(q.transpose(1, 2).contiguous().transpose(1, 2), k, v,
                                              return_lse=True)  # fmt: skip
        with FakeTensorMode() as mode:
            fake = fastops.block_sparse_attention(
                *(mode.from_tensor(t) for t in (q, k, v)), return_lse=True
            )
        for a, b in zip(real, fake, strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_vmap():
    problem = Problem.make(batch=3, heads=4, kv_heads=2, sq=20, skv=30, d=8, mask_batch=1)
    mask, (q, k, v) = problem.mask(16), problem.inputs[:3]

    def call(q, k, v):
        return fastops.block_sparse_attention(q[None], k[None], v[None], mask)[0]

    assert same_bits(torch.vmap(call)(q, k, v), fastops.block_sparse_attention(q, k, v, mask))
    shared = torch.vmap(call, (0, None, None))(q, k[0], v[0])
    assert same_bits(shared[1], call(q[1], k[0], v[0]))


def test_autocast():
    q, k, v = Problem.make(sq=20, skv=30).inputs[:3]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = fastops.block_sparse_attention(q, k.bfloat16(), v)
    assert out.dtype == torch.bfloat16
    plain = fastops.block_sparse_attention(*(t.bfloat16() for t in (q, k, v)))
    assert same_bits(out, plain)


def test_arrays():
    q, k, v, sinks, bias = Problem.make(sq=20, skv=30).inputs
    arrays = [t.numpy() for t in (q, k, v)]
    out, lse = fastops.block_sparse_attention(
        *arrays, sinks=sinks.numpy(), key_bias=bias.numpy(), return_lse=True
    )
    assert isinstance(out, np.ndarray) and isinstance(lse, np.ndarray)
    want = fastops.block_sparse_attention(q, k, v, sinks=sinks, key_bias=bias)
    assert np.array_equal(out, want.numpy())
    mixed = fastops.block_sparse_attention(q, arrays[1], v, sinks=sinks, key_bias=bias.numpy())
    assert same_bits(mixed, want)
    with pytest.raises(ValueError, match="expected q without negative strides"):
        fastops.block_sparse_attention(arrays[0][:, :, ::-1], *arrays[1:])


def test_arrays_keep_to_their_stream(monkeypatch):
    """CuPy's current one: what it is asked of is looked at, as there is no GPU."""
    asked = []
    stream = _interop._stream
    monkeypatch.setattr(_interop, "_stream", lambda array: asked.append(array) or stream(array))
    q = Problem.make(sq=4, skv=4).inputs[0].numpy()
    fastops.block_sparse_attention(q, q, q)
    assert len(asked) == 1 and asked[0] is q


# ---- errors -------------------------------------------------------------------------------------

Q, K = torch.randn(2, 4, 10, 8), torch.randn(2, 2, 12, 8)
MASK = fastops.BlockMask.from_dense(torch.ones(1, 1, dtype=torch.bool), 16, (10, 12))
BAD = [
    ({"q": 3}, TypeError, "expected q to be a tensor or an array, got int"),
    ({"q": Q.double()}, TypeError, "expected q of dtype float32, float16 or bfloat16"),
    ({"q": Q[0]}, ValueError, "expected q of shape [batch, heads, sequence, channels]"),
    ({"q": Q[:, :3]}, ValueError, "multiple of k.shape[1] == 2, got 3"),
    ({"q": Q.transpose(2, 3)}, ValueError, "expected q with stride 1 along its last dim"),
    ({"q": torch.ones(2, 4, 10, 257)}, ValueError, "expected q.shape[-1] in [1, 256], got 257"),
    ({"k": K.half()}, TypeError, "expected k of q's dtype torch.float32, got torch.float16"),
    ({"k": K[..., :7]}, ValueError, "expected k.shape[3] == 8 (channels of q), got 7"),
    ({"v": K[:, :1]}, ValueError, "expected v.shape[1] == 2 (heads of k), got 1"),
    ({"v": K[:, :, :9]}, ValueError, "expected v.shape[2] == 12 (length of k), got 9"),
    ({"k": K[:1]}, ValueError, "expected k.shape[0] == 2 (samples of q), got 1"),
    ({"block_mask": torch.ones(1)}, TypeError, "expected block_mask to be a BlockMask"),
    ({"block_mask": fastops.BlockMask.from_dense(torch.ones(1, 1, dtype=torch.bool), 16)},
     ValueError, "expected a block_mask of lengths (10, 12) (of q and k), got (16, 16)"),
    ({"block_mask": fastops.BlockMask.from_dense(
        torch.ones(3, 1, 1, 1, dtype=torch.bool), 16, (10, 12))},
     ValueError, "expected block_mask.batch to be 1 or 2 as in q, got 3"),
    ({"scale": "1"}, TypeError, "expected scale to be a number, got str"),
    ({"sinks": torch.ones(3)}, ValueError, "expected sinks of shape (4,), got (3,)"),
    ({"sinks": torch.ones(4).int()}, TypeError, "expected sinks of dtype"),
    ({"key_bias": torch.ones(2, 10)}, ValueError, "expected key_bias of shape (2, 12) or"),
    ({"return_lse": 1}, TypeError, "expected return_lse to be a bool, got int"),
]  # fmt: skip


@pytest.mark.parametrize("arguments, error, text", BAD)
def test_errors(arguments, error, text):
    with pytest.raises(error) as caught:
        fastops.block_sparse_attention(**{"q": Q, "k": K, "v": K, **arguments})
    assert str(caught.value).startswith("fastops.block_sparse_attention: ")
    assert text in str(caught.value)


def test_op_errors():
    """A direct call of the op stays safe too."""
    lists = [*MASK.lists, MASK.bits]
    for arguments, text in (
        ((Q, K, K, lists[:3], [16, 16, 1, 1], 1.0), "expected a mask of 0, 5 or 9 tensors"),
        ((Q, K, K, lists, [16, 20, 1, 1], 1.0), "expected blocks of 16, 32, 64 or 128"),
        ((Q, K, K, lists, [16, 16, 1], 1.0), "expected mask_shape of 4 numbers"),
        ((Q, K, K, lists, [16, 16, 2, 1], 1.0), "mask offsets"),
        ((Q, K, K[:, :, :3], lists, [16, 16, 1, 1], 1.0), "expected v.shape[2] == 12"),
        ((Q, K, K, [lists[0].int(), *lists[1:]], [16, 16, 1, 1], 1.0), "wrong dtype"),
        ((Q.double(), K, K, [], [64, 64, 1, 1], 1.0), "expected q of dtype"),
    ):
        with pytest.raises(RuntimeError, match=text.replace("[", r"\[")):
            OPS.block_sparse_attention(*arguments)
