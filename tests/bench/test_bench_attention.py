"""What the attention benches call right: out, or the gradients where those are timed."""

import pytest
import torch

import fastops
from bench import attention
from bench.core.case import Case
from bench.core.pool import Pool


def accuracy(op, mask, dtype="fp32"):
    case = Case(op, "", dtype, (1, 2, 512, 32), variant=mask, warm=True)
    return attention.prepare(case, Pool("cpu", 1 << 16), ("torch",)).verify()


@pytest.mark.parametrize("dtype", ("fp32", "bf16"))
@pytest.mark.parametrize("mask", ("dense", "25 %"))
@pytest.mark.parametrize("op", ("attention", "attention_grad"))
def test_the_kernels_are_right(op, mask, dtype):
    assert accuracy(op, mask, dtype).right


@pytest.mark.parametrize("wrong", (0, 1, 2))
def test_a_wrong_gradient_is_seen(monkeypatch, wrong):
    right = fastops.block_sparse_attention

    def slightly_off(*tensors, block_mask=None):
        scaled = list(tensors)
        t = scaled[wrong]
        scaled[wrong] = t.detach() + 1.001 * (t - t.detach())  # the same value
        return right(*scaled, block_mask=block_mask)

    monkeypatch.setattr(fastops, "block_sparse_attention", slightly_off)
    found = accuracy("attention_grad", "25 %")
    assert not found.right
    assert found.ours == pytest.approx(1e-3, rel=0.01)


def test_gradients_have_errors_of_their_own():
    assert accuracy("attention", "dense") != accuracy("attention_grad", "dense")
    assert torch.is_grad_enabled()
