"""The CUDA kernels of the attention family, run on the host through the real ops: every kernel and
way to cut the work, forward and backward, in three orders of threads. `FASTOPS_SIMT=1 pytest
tests/attention` runs the family's ordinary tests on them.
"""

from __future__ import annotations

import pytest
import torch

import fastops
from fastops import BlockMask
from fastops._lib import _native
from fastops.attention.reference import attention_reference
from tests.simt.emulator import emulator, launched

pytestmark = pytest.mark.usefixtures("order")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def passes() -> set[str]:
    """The kernels launched since the last call, but for those that sort rows, and merge pieces of
    them, which have tests of their own (test_attention_order_ops.py)."""
    return launched() - {"attention order", "attention order and splits", "attention join"}


def random_mask(shape: tuple[int, ...], block: tuple[int, int], seed: int) -> torch.Tensor:
    """Whole, partial and empty blocks; an empty row of blocks, and an empty row."""
    generator = torch.Generator().manual_seed(seed)
    *outer, q, kv = shape
    kind = torch.rand(*outer, -(-q // block[0]), -(-kv // block[1]), generator=generator)
    kind[..., -1, :] = 1
    kind = kind.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)[..., :q, :kv]
    elements = torch.rand(shape, generator=generator)
    mask = (kind < 0.35) | ((kind < 0.7) & (elements < 0.5))
    mask[..., q // 3, :] = False
    return mask


def check(
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    lengths: tuple[int, int],
    heads: tuple[int, int],
    block: tuple[int, int],
    *,
    own: tuple[int, int] | None = (1, 1),
    sinks: bool = False,
    bias: bool = False,
    elements: torch.Tensor | None = None,
    scale: float | None = None,
    offset: int = 0,
    batch: int = 2,
    backward: bool = True,
) -> set[str]:
    """Values, lse and gradients within the ratio rule; the kernels that ran. `own`: batch and heads
    of the mask, None: no mask. `elements`: the mask, where it is not a random one. `offset`:
    elements that q starts past an alignment."""
    generator = torch.Generator().manual_seed(head_dim + block[0] * lengths[0])

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    q = randn(batch, heads[0], lengths[0], head_dim + offset).to(dtype)[..., offset:]
    k = randn(batch, lengths[1], heads[1], head_dim).to(dtype).transpose(1, 2)
    v = randn(batch, heads[1], lengths[1], value_dim).to(dtype)
    inputs = [q, k, v]
    inputs += [randn(heads[0])] if sinks else []
    inputs += [randn(batch, heads[0], lengths[1])] if bias else []
    if elements is None and own is not None:
        elements = random_mask((*own, *lengths), block, lengths[0])
    mask = None if elements is None else BlockMask.from_element_mask(elements, block)
    grad = randn(batch, heads[0], lengths[0], value_dim).to(dtype)
    grad_lse = randn(batch, heads[0], lengths[0])

    def results(call, dtype: torch.dtype | None, mask) -> list[torch.Tensor]:
        given = [(t.to(dtype) if dtype else t).detach().requires_grad_() for t in inputs]
        rest = given[3:]
        out, lse = call(
            *given[:3], mask, scale=scale,
            sinks=rest.pop(0) if sinks else None, key_bias=rest.pop(0) if bias else None,
        )  # fmt: skip
        finite = torch.where(lse == -torch.inf, 0, lse)
        if not backward:
            return [out, finite]
        loss = (out * grad.to(out.dtype)).sum() + (finite * grad_lse.to(lse.dtype)).sum()
        return [out, finite, *torch.autograd.grad(loss, given)]

    def kernels(*args, **kwargs):
        return fastops.block_sparse_attention(*args, **kwargs, return_lse=True)

    got = results(kernels, None, mask)
    names = passes()
    exact = results(attention_reference, torch.float64, elements)
    plain = results(attention_reference, dtype, elements)
    for i, (g, e, p) in enumerate(zip(got, exact, plain, strict=True)):
        g, e, p = g.detach().double(), e.detach(), p.detach().double()
        size = e.abs().max()
        if sinks and i == 5:  # a sum over rows that cancel: what plain PyTorch loses is luck
            size = size + lengths[0] ** 0.5
        assert (g - e).abs().max() <= 2 * (p - e).abs().max() + torch.finfo(dtype).eps * size
    return names


MMA = {"attention forward", "attention delta", "attention backward by key",
       "attention backward by query"}  # fmt: skip
PLAIN = {"attention forward plain", "attention delta", "attention backward plain by key",
         "attention backward plain by query"}  # fmt: skip
BLOCKS = [(16, 16), (32, 64), (64, 32), (128, 128)]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 64), (40, 128)])
def test_tensor_cores(dtype, head_dim, value_dim, block) -> None:
    assert check(dtype, head_dim, value_dim, (70, 340), (2, 1), block) == MMA


@pytest.fixture
def hopper(monkeypatch) -> None:
    monkeypatch.setenv("FASTOPS_SM90", "1")


# Heads of q and kv, block. Two warpgroups of rows, of one head and of packed ones; then one.
HOPPER_CUTS = [
    ((1, 1), (128, 128)), ((2, 1), (64, 64)), ((4, 1), (32, 16)), ((8, 1), (16, 32)),
    ((2, 2), (64, 128)), ((2, 1), (32, 64)), ((4, 1), (16, 16)),
]  # fmt: skip


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(("heads", "block"), HOPPER_CUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 64), (40, 128)])
def test_hopper(dtype, head_dim, value_dim, heads, block) -> None:
    """More than five tiles a list, ragged ends of both lengths, blocks that fill several tiles and
    several that fill one."""
    options = {"sinks": block[0] == 64, "bias": block[1] == 16, "backward": False}
    names = check(dtype, head_dim, value_dim, (block[0] + 70, 1100), heads, block, **options)
    assert names == {"attention forward hopper"}


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(("heads", "block"), [((1, 1), (128, 32)), ((2, 1), (32, 128))])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(96, 72), (192, 128), (256, 200), (24, 256)])
def test_hopper_channels(dtype, head_dim, value_dim, heads, block) -> None:
    """The other widths, filled and not; boxes that hold no channel; five tiles a list and more."""
    plan = _native.attention_cuda_plan(
        block_q=block[0], group=heads[0], head_dim=head_dim, value_dim=value_dim
    )
    shape = (1, 1, 140, 1100 if plan["columns"] == 128 else 700)
    elements = random_mask(shape, block, 140)
    listed = BlockMask.from_element_mask(elements, block).lists[0].diff().max() * block[1]
    assert listed > 4 * plan["columns"]
    options = {"elements": elements, "backward": False}
    names = check(dtype, head_dim, value_dim, shape[2:], heads, block, **options)
    assert names == {"attention forward hopper"}


BY_KEY, BY_QUERY = "attention backward hopper by key", "attention backward hopper by query"
# Which parts of the backward have 64 rows to a tile: queries of packed heads, keys of one.
HOPPER_BACKWARD_CUTS = [
    ((2, 1), (32, 128), {BY_KEY, BY_QUERY}), ((4, 1), (16, 32), {BY_QUERY}),
    ((1, 1), (16, 64), {BY_KEY}), ((1, 1), (128, 128), {BY_KEY, BY_QUERY}),
]  # fmt: skip


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 64), (40, 128)])
def test_hopper_backward(dtype, head_dim, value_dim) -> None:
    """Lists of more than five tiles both ways, whole, partial and empty blocks, ragged ends, two
    heads that share keys."""
    names = check(dtype, head_dim, value_dim, (520, 456), (2, 1), (64, 64), batch=1)
    assert names == {"attention forward hopper", "attention delta", BY_KEY, BY_QUERY}


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(("heads", "block", "parts"), HOPPER_BACKWARD_CUTS)
def test_hopper_backward_cuts(heads, block, parts) -> None:
    names = check(torch.float16, 128, 72, (block[0] + 330, 460), heads, block, batch=1)
    assert names & {BY_KEY, BY_QUERY} == parts


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("own", [None, (1, 4), (2, 1), (2, 4)])
def test_hopper_heads_and_scores(own) -> None:
    options = {"own": own, "sinks": True, "bias": True}
    names = check(torch.bfloat16, 64, 64, (130, 200), (4, 2), (64, 64), **options)
    rest = {"attention delta", "attention sink gradient"}
    assert names == {"attention forward hopper", BY_KEY, BY_QUERY} | rest
    names = check(torch.float16, 32, 48, (33, 150), (4, 1), (16, 16), scale=-0.3, **options)
    shared = own is None or own[1] == 1
    assert names >= {"attention forward hopper" if shared else "attention forward"}
    assert (BY_QUERY in names) == shared
    assert (BY_KEY in names) == (own is None)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_hopper_leaves_out_gradients_that_nobody_wants(wanted) -> None:
    tensors = [torch.randn(1, 1, 140, 64).half() for _ in range(3)]
    given = [t.requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
    for t in given:
        t.grad = None
    fastops.block_sparse_attention(*given, BlockMask.causal(140, 64)).sum().backward()
    names = passes()
    assert (BY_QUERY in names, BY_KEY in names) == (wanted[0], wanted[1] or wanted[2])
    got = next(t.grad for t in given if t.requires_grad)
    every = [t.detach().requires_grad_() for t in tensors]
    fastops.block_sparse_attention(*every, BlockMask.causal(140, 64)).sum().backward()
    assert got.equal(every[wanted.index(True)].grad)


@pytest.mark.usefixtures("hopper")
def test_hopper_leaves_what_it_cannot_address() -> None:
    q, k = (torch.randn(1, 2, 70, 64).half() for _ in range(2))
    for keys in (k[:, :1].expand(1, 2, 70, 64), torch.zeros(1, 2, 0, 64).half()):
        fastops.block_sparse_attention(q, keys, keys)
        assert passes() == {"attention forward"}
    fastops.block_sparse_attention(q, k[:, :1], k[:, :1])
    assert passes() == {"attention forward hopper"}
    x = q.requires_grad_()
    out = fastops.block_sparse_attention(x, k[:, :1], k[:, :1])
    for grad, part in (
        (torch.ones_like(out), BY_QUERY),
        (out[:, :1].detach(), "attention backward by query"),
    ):
        passes()
        torch.autograd.grad(out, x, grad.expand_as(out), retain_graph=True)
        assert passes() == {"attention delta", part}


@pytest.mark.parametrize("block", [(16, 32), (64, 16), (128, 128)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_256_channels(dtype, block) -> None:
    names = check(dtype, 256, 136, (50, 150), (1, 1), block, sinks=True)
    rest = {"attention forward", "attention sink gradient"}
    assert names == (PLAIN - {"attention forward plain"}) | rest


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hopper_256_channels_backward(dtype) -> None:
    """The backward has no kernel for them, but takes what the forward's leaves."""
    names = check(dtype, 256, 136, (130, 150), (1, 1), (64, 64), sinks=True, bias=True)
    rest = {"attention forward hopper", "attention sink gradient"}
    assert names == (PLAIN - {"attention forward plain"}) | rest


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 33), (80, 256)])
def test_plain(head_dim, value_dim, block) -> None:
    assert check(torch.float32, head_dim, value_dim, (50, 170), (2, 1), block) == PLAIN


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [24, 104])
def test_unaligned(dtype, head_dim) -> None:
    assert check(dtype, head_dim, 16, (40, 90), (1, 1), (32, 32), offset=1) == PLAIN
    assert check(dtype, head_dim + 1, 16, (40, 90), (1, 1), (32, 32)) == PLAIN


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("own", [None, (1, 4), (2, 1), (2, 4)])
def test_heads_and_scores(dtype, own) -> None:
    options = {"own": own, "sinks": True, "bias": True}
    check(dtype, 64, 64, (90, 110), (4, 2), (32, 64), **options)
    check(dtype, 32, 48, (33, 150), (4, 1), (16, 16), scale=-0.3, **options)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_to_attend_to(dtype) -> None:
    q, k = torch.randn(1, 1, 20, 64).to(dtype), torch.randn(1, 1, 40, 64).to(dtype)
    nothing = BlockMask.from_dense(torch.zeros(2, 3, dtype=torch.bool), 16, (20, 40))
    for keys, mask in ((k, nothing), (k[:, :, :0], None)):
        given = [t.detach().requires_grad_() for t in (q, keys, keys)]
        out, lse = fastops.block_sparse_attention(*given, mask, return_lse=True)
        assert not out.any()
        assert (lse == -torch.inf).all()
        out.sum().backward()
        assert all(not t.grad.any() for t in given)


@pytest.mark.usefixtures("hopper")
def test_hopper_nothing_to_attend_to() -> None:
    """Empty lists, and lists of empty rows: a gradient of 0, of the bias too, is written."""
    q, k, v = (torch.randn(1, 2, n, 64).half() for n in (70, 140, 140))
    nothing = torch.zeros(70, 140, dtype=torch.bool)
    one = nothing.clone()
    one[3, 5] = True  # alone: a weight of 1, whose gradient is 0
    for elements in (nothing, one):
        mask = BlockMask.from_element_mask(elements, 64)
        given = [t.detach().requires_grad_() for t in (q, k, v, torch.randn(1, 2, 140))]
        out = fastops.block_sparse_attention(*given[:3], mask, key_bias=given[3])
        grads = torch.autograd.grad(out, given, torch.ones_like(out))
        assert passes() >= {BY_KEY, BY_QUERY}
        assert all(g.abs().max() < 1e-2 for g in (grads[0], grads[1], grads[3]))
        kept = elements.sum(0).half()[:, None].expand(140, 64)
        assert (grads[2] - kept).abs().max() < 1e-2


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("block", [16, 64])  # of 64: Hopper's kernels
def test_edited_lists_stay_in_bounds(block) -> None:
    length = 4 * block + 6
    q = torch.randn(1, 1, length, 64).half()
    mask = BlockMask.from_element_mask(random_mask((length,) * 2, (block,) * 2, 1), block)
    transposed = mask.transposed()
    generator = torch.Generator().manual_seed(0)
    for lists in (mask.lists, transposed):
        for t in lists:
            at = torch.randint(t.numel(), (t.numel() // 2,), generator=generator)
            t[at] = torch.randint(-(2**30), 2**30, at.shape, generator=generator).to(t.dtype)
            t[0] = -5
    x = q.detach().requires_grad_()
    fastops.block_sparse_attention(x, x, x, mask).sum().backward()


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("block", [16, 64])  # of 64: Hopper's kernels
@pytest.mark.parametrize("dtype", FLOATS)
def test_same_bits_again(dtype, block) -> None:
    q = torch.randn(1, 2, 140, 64).to(dtype)
    grad = torch.randn_like(q)
    mask = BlockMask.causal(140, block)

    def results() -> list[torch.Tensor]:
        given = [q.detach().requires_grad_() for _ in range(3)]
        out, lse = fastops.block_sparse_attention(*given, mask, return_lse=True)
        return [out, lse, *torch.autograd.grad(out, given, grad)]

    first = results()
    emulator().simt_configure(2, 1, 99)
    assert all(a.equal(b) for a, b in zip(first, results(), strict=True))
