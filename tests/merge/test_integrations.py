"""Patched vision transformers against the same model with merging written out in plain PyTorch."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from bench.peers import tome as peer
from fastops.integrations import timm as for_timm
from fastops.integrations._vit import schedule


def small_vit(**more):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=64,
        image_size=32, patch_size=4, **more,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config).double().eval()


def plain_tome(model, pixels, r):
    """What the patch does, by the public algorithm, in its order of tokens."""
    x, size = model.vit.embeddings(pixels), None
    for layer in model.vit.layers:
        a = layer.attention
        split = [
            p(layer.layernorm_before(x)).unflatten(-1, (3, 16)).transpose(1, 2)
            for p in (a.q_proj, a.k_proj, a.v_proj)
        ]
        bias = None if size is None else size.log()[..., 0][:, None, None]
        out = nn.functional.scaled_dot_product_attention(*split, attn_mask=bias)
        x = x + a.o_proj(out.transpose(1, 2).flatten(2))
        merge, _ = peer.tome(split[1].mean(1), r, class_token=True)
        x, size = peer.weighted(merge, x, size)
        x = x + layer.mlp(layer.layernorm_after(x))
    return model.classifier(model.vit.layernorm(x)[:, 0]), size


def test_transformers():
    from fastops.integrations import transformers as patches

    model, pixels = small_vit(), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before = model(pixels).logits
        expected, size = plain_tome(model, pixels, 7)
        assert patches.patch(model, r=7) is model
        got = model(pixels)
        torch.testing.assert_close(got.logits, expected)
        state = model.token_merging
        assert state.size.shape == (3, 65 - 28) and (state.size.sum(1) == 65).all()
        assert torch.equal(state.size.sort(1).values, size[..., 0].sort(1).values)
        assert state.source.num_tokens == 65 and (state.source.map[:, 0] == 0).all()
        assert torch.equal(state.source.source(torch.float64).sum(-1), state.size)
        torch.testing.assert_close(model(pixels).logits, got.logits)  # nothing is left over
        with pytest.raises(ValueError, match="not patched"):
            patches.patch(model, r=1)
        patches.unpatch(model)
        assert torch.equal(model(pixels).logits, before)
    patches.patch(model, r=3)
    model(pixels).logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with pytest.raises(TypeError, match="expected a model with a ViT"):
        patches.patch(nn.Linear(2, 2), r=1)


def tiny(transformers, kind):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=64,
        image_size=32, patch_size=4,
    )  # fmt: skip
    return getattr(transformers, f"{kind}Model")(config).double().eval()


@pytest.mark.parametrize(("kind", "prefix"), [("ViT", 1), ("DeiT", 2), ("ViTMSN", 1), ("IJepa", 0)])
def test_models_of_transformers(kind, prefix):
    transformers = pytest.importorskip("transformers")
    from fastops.integrations import transformers as patches

    model, pixels = tiny(transformers, kind), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before = model(pixels).last_hidden_state
        patches.patch(model, r=0)
        torch.testing.assert_close(model(pixels).last_hidden_state, before)
        patches.unpatch(model)
        patches.patch(model, r=9)
        after = model(pixels).last_hidden_state
    assert after.shape[1] == before.shape[1] - 27
    state = model.token_merging
    assert (state.class_token, state.distill_token) == (prefix >= 1, prefix == 2)
    # Class and distillation token stay first, and stand for themselves.
    first = torch.arange(prefix, dtype=torch.int32).expand(2, -1)
    assert torch.equal(state.source.map[:, :prefix], first)
    assert (state.size[:, :prefix] == 1).all()


def test_models_that_need_more_are_refused():
    transformers = pytest.importorskip("transformers")
    from fastops.integrations import transformers as patches

    for kind in ("Beit", "ViTMAE"):
        with pytest.raises(TypeError, match="expected a model with a ViT"):
            patches.patch(tiny(transformers, kind), r=1)


def test_copies_are_of_their_own():
    """Copied and pickled, after a forward pass; what was put on a layer before comes back."""
    from fastops.integrations import transformers as patches

    model, pixels = small_vit(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    calls = []
    layer = model.vit.layers[1]

    def own(*args, **kwargs):
        calls.append(1)
        return type(layer).forward(layer, *args, **kwargs)

    with torch.no_grad():
        before = model(pixels).logits
        patches.patch(model, r=4)
        merged = model(pixels).logits
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(copied(pixels).logits, merged)
            for parameter in copied.vit.layers.parameters():
                parameter.zero_()
            assert not torch.equal(copied(pixels).logits, merged)
            assert torch.equal(model(pixels).logits, merged)
            assert copied.token_merging is not model.token_merging
            patches.unpatch(copied)
            assert torch.equal(model(pixels).logits, merged)
            assert copied(pixels, output_hidden_states=True).hidden_states[-1].shape[1] == 65
        patches.unpatch(model)
        assert torch.equal(model(pixels).logits, before)
        layer.forward = own
        patches.patch(model, r=4)
        assert torch.equal(model(pixels).logits, merged) and not calls
        patches.unpatch(model)
        assert torch.equal(model(pixels).logits, before) and calls == [1]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_patched_model_compiles_whole():
    from fastops.integrations import transformers as patches

    model, pixels = small_vit(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    patches.patch(model, r=4)
    with torch.no_grad():
        expected = model(pixels).logits
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(pixels).logits, expected)
        torch.testing.assert_close(compiled(pixels).logits, expected)


def test_timm():
    """timm itself, where it imports: its torchvision wants a torch of the same release."""
    try:
        import timm
    except Exception as error:
        pytest.skip(f"timm does not import here: {type(error).__name__}: {error}")
    torch.manual_seed(0)
    for name in ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"):
        model = timm.create_model(name, img_size=96, num_classes=10).double().eval()
        pixels = torch.randn(2, 3, 96, 96, dtype=torch.float64)
        tokens, prefix = 36 + model.num_prefix_tokens, model.num_prefix_tokens
        with torch.no_grad():
            before = model(pixels)
            for_timm.patch(model, r=0)
            torch.testing.assert_close(model(pixels), before)
            for_timm.unpatch(model)
            for_timm.patch(model, r=2)
            got, state = model(pixels), model.token_merging
            assert state.size.shape == (2, tokens - 24) and (state.size.sum(1) == tokens).all()
            assert (state.source.map[:, 0] == 0).all() and state.source.num_tokens == tokens
            assert got.isfinite().all() and not torch.equal(got, before)
            if prefix == 1:
                torch.testing.assert_close(got, plain_tome_timm(model, pixels, 2))
            for_timm.unpatch(model)
            assert torch.equal(model(pixels), before) and not hasattr(model, "token_merging")


def plain_tome_timm(model, pixels, r):
    """The public algorithm, in timm's blocks."""
    x, size = model.norm_pre(model._pos_embed(model.patch_embed(pixels))), None
    for block in model.blocks:
        a = block.attn
        qkv = a.qkv(block.norm1(x)).unflatten(-1, (3, a.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = None if size is None else size.log()[..., 0][:, None, None]
        out = nn.functional.scaled_dot_product_attention(*qkv, attn_mask=bias)
        x = x + a.proj(out.transpose(1, 2).flatten(2))
        merge, _ = peer.tome(qkv[1].mean(1), r, class_token=True)
        x, size = peer.weighted(merge, x, size)
        x = x + block.mlp(block.norm2(x))
    return model.forward_head(model.norm(x))


class Attention(nn.Module):
    """As timm's: one fused projection."""

    def __init__(self, dim, heads):
        super().__init__()
        self.num_heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, attn_mask=None, is_causal=False):
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(
            *qkv, attn_mask=attn_mask, is_causal=is_causal
        )
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, heads), nn.Linear(dim, dim)
        self.ls1 = self.ls2 = self.drop_path1 = self.drop_path2 = nn.Identity()

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    """The parts of timm's VisionTransformer that the patch touches; timm itself does not import
    beside a CPU build of torch."""

    def __init__(self):
        super().__init__()
        self.num_prefix_tokens = 1
        self.blocks = nn.Sequential(*(Block(24, 3) for _ in range(3)))

    def forward(self, x):
        return self.blocks(x)


def test_timm_blocks():
    model, x = Model().double(), torch.randn(2, 33, 24, dtype=torch.float64)
    before = model(x)
    for_timm.patch(model, r=[5, 6])
    assert model(x).shape == (2, 33 - 11, 24)
    assert model.token_merging.r == [5, 6, 0]
    for_timm.unpatch(model)
    assert torch.equal(model(x), before)
    for_timm.patch(model, r=0)
    torch.testing.assert_close(model(x), before)


def test_timm_blocks_without_the_model():
    """`forward_features` and the like do not go through the model's own call."""
    model, x = Model().double(), torch.randn(2, 33, 24, dtype=torch.float64)
    for_timm.patch(model, r=[5, 6])
    expected = model(x)
    for _ in range(2):
        assert torch.equal(model.blocks(x), expected)
    assert torch.equal(copy.deepcopy(model)(x), expected)


def test_timm_options_reach_the_attention():
    model, x = Model().double(), torch.randn(2, 33, 24, dtype=torch.float64)
    for_timm.patch(model, r=0)
    block, mask = model.blocks[0], torch.ones(33, 33, dtype=torch.bool).tril()
    expected = block(x, attn_mask=mask)
    assert torch.equal(block(x, attn_mask=mask, is_causal=False), expected)
    assert not torch.equal(block(x), expected)
    torch.testing.assert_close(block(x, is_causal=True), expected)


def test_schedule():
    assert schedule("f", 8, 3) == [8, 8, 8]
    assert schedule("f", (8, 1.0), 5) == [0, 4, 8, 12, 16]
    assert schedule("f", (8, -1.0), 5) == [16, 12, 8, 4, 0]
    assert schedule("f", [1, 2], 4) == [1, 2, 0, 0]
    with pytest.raises(ValueError, match="expected r >= 0"):
        schedule("f", -1, 2)
    with pytest.raises(TypeError, match="expected r to be an int"):
        schedule("f", "8", 2)
