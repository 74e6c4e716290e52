"""The peers do the job they are timed at, as far as a CPU can say."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention

from bench.core.timing import LEAST_SLEEP_CYCLES, MOST_SLEEP_S, sleep_cycles
from bench.peers import compiled, registry, scaled_dot_product, semi_structured, tome


def test_what_needs_a_gpu_is_named_on_a_cpu():
    missing = registry.missing("cpu")
    gpu_only = {name for name, what in registry.PEERS.items() if "GPU only" in what}
    assert gpu_only and all(missing[name] == "runs on a GPU only" for name in gpu_only)
    assert not gpu_only & set(registry.defaults("cpu"))
    assert gpu_only <= set(registry.defaults("cuda")) <= set(registry.PEERS)


def test_semi_structured_weights_serve_what_satisfies_2_4():
    half, single = torch.float16, torch.float32
    served = [p for p in ("2:4", "1:4", "2:8", "1:16", "3:4", "4:8", "1:2", "2:6")
              if semi_structured.serves(*map(int, p.split(":")), half)]  # fmt: skip
    assert served == ["2:4", "1:4", "2:8", "1:16"]
    assert not semi_structured.serves(2, 4, single)


@pytest.mark.parametrize("blocks", [(16, 32), (64, 64)])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_flex_attention_of_a_block_list(blocks, kv_heads):
    """Against dense attention of the same mask, element by element."""
    torch.manual_seed(0)
    block_q, block_kv = blocks
    q = torch.randn(2, 4, 192, 16)
    k, v = (torch.randn(2, kv_heads, 128, 16) for _ in range(2))
    keep = torch.rand(1, 4, 192 // block_q, 128 // block_kv) < 0.5
    keep[..., 0] = True
    mask = scaled_dot_product.block_mask(keep, block_q, block_kv, 192, 128)
    whole = keep.repeat_interleave(block_q, -2).repeat_interleave(block_kv, -1)
    grouped = kv_heads != 4
    expected = F.scaled_dot_product_attention(q, k, v, whole, scale=0.3, enable_gqa=grouped)
    got = flex_attention(q, k, v, block_mask=mask, scale=0.3, enable_gqa=grouped)
    torch.testing.assert_close(got, expected)


def test_compiled_tome_is_tome():
    if compiled.why_missing("cpu"):
        pytest.skip("needs a C++ compiler")
    torch.manual_seed(0)
    metric, x, size = torch.randn(2, 21, 8), torch.randn(2, 21, 5), torch.ones(2, 21, 1)
    merge, _ = tome.tome(metric, 4, class_token=True)
    expected = tome.weighted(merge, x, size)
    for got, want in zip(compiled.tome(metric, x, size, 4)(), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_the_device_sleeps_while_the_host_queues():
    assert sleep_cycles(0.0) == LEAST_SLEEP_CYCLES
    assert sleep_cycles(1e-3) == 4_000_000  # twice as long, at 2 GHz
    assert sleep_cycles(10.0) == sleep_cycles(MOST_SLEEP_S)
