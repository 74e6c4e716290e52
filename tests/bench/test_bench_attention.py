"""What the attention benches call right: out, or the gradients where those are timed."""

import pytest
import torch

import fastops
from bench import attention
from bench.__main__ import _drop_failing_peers
from bench.attention.cases import MASKS
from bench.core.case import Case
from bench.core.pool import Pool
from bench.peers import registry, scaled_dot_product


def accuracy(op, mask, dtype="fp32"):
    case = Case(op, "", dtype, (1, 2, 512, 32), variant=mask, warm=True)
    return attention.prepare(case, Pool("cpu", 1 << 16), ("torch",)).verify()


@pytest.mark.parametrize("dtype", ("fp32", "bf16"))
@pytest.mark.parametrize("mask", ("dense", "25 %"))
@pytest.mark.parametrize("op", ("attention", "attention_backward", "attention_grad"))
def test_the_kernels_are_right(op, mask, dtype):
    assert accuracy(op, mask, dtype).right


@pytest.mark.parametrize("op", ("attention_backward", "attention_grad"))
@pytest.mark.parametrize("wrong", (0, 1, 2))
def test_a_wrong_gradient_is_seen(monkeypatch, wrong, op):
    right = fastops.block_sparse_attention

    def slightly_off(*tensors, block_mask=None):
        scaled = list(tensors)
        t = scaled[wrong]
        scaled[wrong] = t.detach() + 1.001 * (t - t.detach())  # the same value
        return right(*scaled, block_mask=block_mask)

    monkeypatch.setattr(fastops, "block_sparse_attention", slightly_off)
    found = accuracy(op, "25 %")
    assert not found.right
    assert found.ours == pytest.approx(1e-3, rel=0.01)


def test_gradients_have_errors_of_their_own():
    assert accuracy("attention", "dense") != accuracy("attention_grad", "dense")
    assert torch.is_grad_enabled()


def test_a_backward_pass_is_timed_without_its_forward(monkeypatch):
    forward, forwards = fastops.block_sparse_attention, []

    def counted(*tensors, block_mask=None):
        forwards.append(block_mask)
        return forward(*tensors, block_mask=block_mask)

    monkeypatch.setattr(fastops, "block_sparse_attention", counted)
    case = Case("attention_backward", "", "fp32", (1, 2, 512, 32), variant="25 %", warm=True)
    work = attention.prepare(case, Pool("cpu", 1 << 16), ("torch",))
    ours, theirs = (calls[0] for calls in work.calls.values())
    first, again = ours(), ours()
    assert len(forwards) == 1
    assert all(map(torch.equal, first, again))
    torch.testing.assert_close(first, theirs())
    q = 2 * 512 * 32 * 4
    assert work.traffic == 8 * q  # q, k, v, out and the gradients of each


@pytest.fixture
def wide(monkeypatch):
    """The workload of a case as for a GPU, its shape among those measured against every peer, where
    FlexAttention runs uncompiled."""
    shape = (1, 2, 512, 32)
    monkeypatch.setattr("bench.attention.ops.WIDE_SHAPES", {shape})
    monkeypatch.setattr(torch, "compile", lambda f, **how: f)

    def prepare(op, mask, dtype="bf16"):
        case = Case(op, "", dtype, shape, variant=mask, device="cuda")
        return attention.prepare(case, Pool("cpu", 1 << 16), tuple(registry.PEERS))

    return prepare


def test_dense_kernels_are_peers_where_everything_is_kept(wide):
    work = wide("attention", "dense")
    assert set(work.calls) == {"fastops", "torch", "sdpa_flash", "sdpa_cudnn", "flex"}
    expected = work.calls["fastops"][0]().float()
    for peer in ("sdpa_flash", "flex"):
        torch.testing.assert_close(work.calls[peer][0]().float(), expected, atol=0.02, rtol=0.02)
    _drop_failing_peers(work)
    assert "sdpa_cudnn" not in work.calls  # there is none on a CPU
    assert work.notes["sdpa_cudnn"].startswith("failed: RuntimeError")
    assert not {"sdpa_flash", "sdpa_cudnn"} & set(wide("attention", "dense", "fp32").calls)


@pytest.mark.parametrize("mask, block", [("25 %", 64), ("10 % of 128", 128)])
def test_flex_is_told_the_same_blocks(wide, monkeypatch, mask, block):
    seen = []
    flex = scaled_dot_product.flex
    monkeypatch.setattr(
        scaled_dot_product, "flex", lambda mask, device: seen.append(mask) or flex(mask, device)
    )
    work = wide("attention", mask)
    assert set(work.calls) == {"fastops", "torch", "own dense", "flex"}
    (told,) = seen
    rows, share = 512 // block, MASKS[mask].share(512)
    assert list(told.BLOCK_SIZE) == [block, block]
    assert told.kv_num_blocks.sum() == 0  # none needs a look at its elements
    assert told.full_kv_num_blocks.tolist() == [[[share * rows] * rows]]
    torch.testing.assert_close(
        work.calls["flex"][0]().float(), work.calls["fastops"][0]().float(), atol=0.02, rtol=0.02
    )


def test_the_dense_kernels_backward_is_the_same(wide):
    work = wide("attention_backward", "dense")
    for ours, theirs in zip(work.calls["fastops"][0](), work.calls["sdpa_flash"][0](), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), atol=0.02, rtol=0.05)
