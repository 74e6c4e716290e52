"""A language model of transformers over 8k tokens with fastops' attention, and with SDPA's.

    python examples/long_context.py [tokens]

Random weights: it is about speed. Prints tokens per second of a forward pass, and how far the
hidden states of the two are apart. The second part packs documents into the sequence: the blocks
between them cost nothing.
"""

import sys
import time

import torch
from transformers import LlamaConfig, LlamaModel

from fastops import BlockMask
from fastops.integrations.transformers import register


def seconds(model: LlamaModel, **inputs) -> tuple[float, torch.Tensor]:
    begin = time.perf_counter()
    with torch.inference_mode():
        states = model(use_cache=False, **inputs).last_hidden_state
    if states.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin, states


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    register()
    config = LlamaConfig(
        vocab_size=1000, hidden_size=512, intermediate_size=1024, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=tokens,
    )  # fmt: skip
    model = LlamaModel(config).to(device, torch.bfloat16).eval()
    ids = torch.randint(1000, (1, tokens), device=device)
    document = max(tokens // 16, 1)
    positions = torch.arange(tokens, device=device)[None] % document
    inputs = {
        "causal": {"input_ids": ids},
        "packed": {
            "input_ids": ids,
            "position_ids": positions,
        },
    }
    for what, given in inputs.items():
        states = {}
        for attention in ("sdpa", "fastops"):
            model.set_attn_implementation(attention)
            seconds(model, input_ids=ids[:, :256])  # warm
            taken, states[attention] = seconds(model, **given)
            print(f"{what:8} {attention:8} {tokens / taken:10,.0f} tokens/s")
        apart = (states["sdpa"].float() - states["fastops"].float()).abs().max()
        print(f"{what:8} apart by at most {apart:.2g} (bfloat16)")
    edges = torch.arange(0, tokens + 1, document)
    print(BlockMask.documents(edges, causal=True, total=tokens, block_size=64))


if __name__ == "__main__":
    main()
