"""attn_implementation="fastops" in models of transformers, against sdpa. Random weights."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers")

from fastops import BlockMask  # noqa: E402
from fastops.integrations._attention import make_mask  # noqa: E402
from fastops.integrations.transformers import register  # noqa: E402

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    register(block_size=32)


def model(name: str = "Llama", **config):
    torch.manual_seed(0)
    made = getattr(transformers, f"{name}Config")(**SIZES, **config)
    return getattr(transformers, f"{name}ForCausalLM")(made).eval()


def both(net, *args, theirs="sdpa", **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    results = []
    for implementation in (theirs, "fastops"):
        net.set_attn_implementation(implementation)
        assert net.config._attn_implementation == implementation
        results.append(net(*args, **kwargs).logits)
    return results[0], results[1]


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(97, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "config"),
    [("Llama", {}), ("Mistral", {"sliding_window": 40}), ("Qwen3", {"head_dim": 32})],
)
def test_as_sdpa(name, config) -> None:
    net = model(name, **config)
    expected, got = both(net, tokens(2, 130))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_sinks() -> None:
    """gpt-oss: a learnt sink per head, and windows in every other layer."""
    net = model(
        "GptOss", sliding_window=24, head_dim=16, num_local_experts=2, num_experts_per_tok=1
    )
    for layer in net.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks)
    expected, got = both(net, tokens(2, 90), theirs="eager")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_padding() -> None:
    net, ids = model(), tokens(2, 70)
    mask = torch.ones_like(ids)
    mask[0, :13] = 0
    expected, got = both(net, ids, attention_mask=mask)
    torch.testing.assert_close(got[mask > 0], expected[mask > 0], rtol=1e-4, atol=1e-4)


def test_packed_documents() -> None:
    net, ids = model(), tokens(1, 90)
    positions = torch.cat([torch.arange(40), torch.arange(50)])[None]
    expected, got = both(net, ids, position_ids=positions)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_gradients() -> None:
    net, ids = model(), tokens(1, 60)
    grads = []
    for implementation in ("sdpa", "fastops"):
        net.set_attn_implementation(implementation)
        net.zero_grad()
        net(ids, labels=ids).loss.backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5)


def test_generation_with_a_cache() -> None:
    net, ids = model(), tokens(1, 50)
    answers = []
    for implementation in ("sdpa", "fastops"):
        net.set_attn_implementation(implementation)
        answers.append(net.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0))
    assert answers[0].equal(answers[1])


@pytest.mark.parametrize("new", [1, 40])  # 1: the prompt fills the cache
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("name", "config"),
    [("Llama", {}), ("Mistral", {"sliding_window": 20}), ("Gemma3", {"sliding_window": 20})],
)
def test_generation_with_a_static_cache(name, config, padded, new) -> None:
    """Keys beyond the last query are there, and hold nothing yet."""
    if name == "Gemma3":  # a mask for each type of layer
        config = config | {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 16}
        net = transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(**SIZES, **config)
        ).eval()
    else:
        net = model(name, **config)
    ids = tokens(2, 50)
    seen = torch.ones_like(ids)
    if padded:
        seen[0, :7] = 0
    answers = []
    for implementation in ("sdpa", "fastops"):
        net.set_attn_implementation(implementation)
        answers.append(net.generate(
            ids, attention_mask=seen, max_new_tokens=new, do_sample=False, pad_token_id=0,
            cache_implementation="static",
        ))  # fmt: skip
    assert answers[0].shape == (2, 50 + new)
    assert answers[0].equal(answers[1])


def test_masks_of_a_static_cache_are_closed_forms() -> None:
    """In the time and memory of their blocks, however long the cache is."""
    made = make_mask(1, 1000, 1 << 24, q_offset=torch.tensor(3000), block_size=128)
    ends = [min(3000 + 128 * (row + 1), 4000) for row in range(8)]
    assert made.offsets.diff().tolist() == [-(-end // 128) for end in ends]
    assert made.indices.numel() == int(made.offsets[-1])


def test_what_the_kernels_lack() -> None:
    from fastops.integrations._attention import attention

    q = torch.randn(1, 2, 20, 16)
    net = torch.nn.Module()
    with pytest.raises(ValueError, match="no dropout"):
        attention(net, q, q, q, None, dropout=0.1, block_size=32)
    with pytest.raises(ValueError, match="no softcap"):
        attention(net, q, q, q, None, softcap=30.0, block_size=32)
    with pytest.raises(ValueError, match=r"torch\.bool"):
        attention(net, q, q, q, torch.zeros(1, 1, 20, 20), block_size=32)
    keep = torch.rand(1, 1, 20, 20) < 0.7
    out, _ = attention(net, q, q, q, keep, block_size=32)
    expected = torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=keep)
    torch.testing.assert_close(out, expected.transpose(1, 2))
    assert isinstance(BlockMask.from_element_mask(keep), BlockMask)
    with pytest.raises(ValueError, match="block sizes of"):
        register(block_size=48)


def test_example(monkeypatch, capsys) -> None:
    """examples/long_context.py, of fewer tokens than it is for."""
    example = Path(__file__).parents[2] / "examples/long_context.py"
    monkeypatch.setattr(sys, "argv", [str(example), "300"])
    try:
        runpy.run_path(str(example), run_name="__main__")
    finally:
        register(block_size=32)
    printed = capsys.readouterr().out
    assert printed.count("tokens/s") == 4
    apart = [line.split()[5] for line in printed.splitlines() if "apart by at most" in line]
    assert len(apart) == 2 and all(float(a) < 0.1 for a in apart)
