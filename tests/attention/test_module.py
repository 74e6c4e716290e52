"""nn.BlockSparseAttention."""

import pytest
import torch

import fastops
from fastops.nn import BlockSparseAttention


def test_is_multihead_attention():
    """With everything kept and one kv head per head: torch's module."""
    torch.manual_seed(0)
    ours = BlockSparseAttention(24, 4)
    theirs = torch.nn.MultiheadAttention(24, 4, batch_first=True)
    with torch.no_grad():
        projections = (ours.q_proj, ours.k_proj, ours.v_proj)
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x, context = torch.randn(2, 20, 24), torch.randn(2, 30, 24)
    torch.testing.assert_close(ours(x, context), theirs(x, context, context)[0])


def test_trains():
    torch.manual_seed(0)
    keep = torch.ones(20, 20).tril().bool()
    mask = fastops.BlockMask.from_element_mask(keep, 16)
    module = BlockSparseAttention(24, 4, num_kv_heads=2, sinks=True, block_mask=mask)
    x = torch.randn(2, 20, 24, requires_grad=True)
    y = module(x, key_bias=torch.zeros(2, 20))
    y[:, 3].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert (x.grad[:, 4:] == 0).all() and (x.grad[:, :4] != 0).any()


def test_the_mask_goes_along():
    module = BlockSparseAttention(24, 4, block_mask=fastops.BlockMask.causal(20, 16))
    assert module.to("meta").block_mask.device.type == "meta"
    assert "block_mask" not in module.state_dict()
    mask = fastops.BlockMask.causal(20, 16)
    assert BlockSparseAttention(24, 4, block_mask=mask).bfloat16().block_mask is mask


def test_errors():
    with pytest.raises(ValueError, match="embed_dim to be a multiple of num_heads == 5, got 24"):
        BlockSparseAttention(24, 5)
    with pytest.raises(ValueError, match="multiple of num_kv_heads == 3"):
        BlockSparseAttention(24, 4, num_kv_heads=3)
