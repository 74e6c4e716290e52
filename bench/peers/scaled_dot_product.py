"""torch's attention: the dense kernels of scaled_dot_product_attention one by one, and
FlexAttention of the same list of blocks, compiled once for each shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from . import compiled, triton_softmax

BACKENDS = {"sdpa_flash": SDPBackend.FLASH_ATTENTION, "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION}


def why_missing(peer: str, device: str) -> str:
    if device != "cuda":
        return (compiled.why_missing(device) or "") if peer == "flex" else "runs on a GPU only"
    if peer == "sdpa_flash" and not torch.backends.cuda.is_flash_attention_available():
        return f"torch {torch.__version__} is built without flash attention"
    if peer == "sdpa_cudnn" and not torch.backends.cudnn.is_available():
        return "cuDNN does not load"
    if peer == "flex":
        return triton_softmax.why_missing(device) or ""
    return ""


def dense(
    peer: str, q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None
) -> Callable[[], Tensor]:
    """Attention over everything, q [B, H, N, D], by one backend; fewer heads of k and v are
    grouped."""

    def run() -> Tensor:
        with sdpa_kernel(BACKENDS[peer]):
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )

    return run


def block_mask(keep: Tensor, block_q: int, block_kv: int, seq_q: int, seq_kv: int) -> BlockMask:
    """FlexAttention's lists of whole blocks from keep [B or 1, H or 1, rows, columns]."""
    # A stable sort puts the kept columns first and in order, as the lists want them.
    indices = keep.int().argsort(dim=-1, descending=True, stable=True).int()
    empty = torch.zeros_like(keep.sum(-1, dtype=torch.int32)), torch.zeros_like(indices)
    batches, heads = keep.shape[:2]

    def kept(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """For FlexAttention uncompiled, which knows no lists; its kernel asks of partial blocks."""
        return keep[b % batches, h % heads, i // block_q, j // block_kv]

    return BlockMask.from_kv_blocks(
        *empty,
        keep.sum(-1, dtype=torch.int32),
        indices,
        BLOCK_SIZE=(block_q, block_kv),
        mask_mod=kept,
        seq_lengths=(seq_q, seq_kv),
    )


@lru_cache(maxsize=1)
def _compiled(key: tuple) -> Callable:
    """Starts from an empty cache: past a few shapes dynamo would fall back to eager."""
    torch.compiler.reset()
    return torch.compile(flex_attention, dynamic=False)


def flex(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float | None = None
) -> Callable[[], Tensor]:
    """FlexAttention of the lists; its kernel reads them as ours does."""
    key = (q.shape, k.shape, v.shape, q.dtype, mask.BLOCK_SIZE)
    run = _compiled(key) if q.is_cuda else flex_attention
    grouped = q.shape[1] != k.shape[1]
    return lambda: run(q, k, v, block_mask=mask, scale=scale, enable_gqa=grouped)
