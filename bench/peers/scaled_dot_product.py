"""torch's attention: the dense kernels of scaled_dot_product_attention one by one, and
FlexAttention of the same list of blocks, compiled for each case."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch._functorch.config
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


def dense(peer: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention over everything, q, k and v [B, H, N, D], by one backend."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(BACKENDS[peer]):
            return F.scaled_dot_product_attention(q, k, v)

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


def flex(mask: BlockMask | None, device: str) -> Callable[..., Tensor]:
    """FlexAttention compiled for one case, every row of which keeps something; on a GPU with the
    fastest of the tiles that inductor tries, which for blocks of 64 may be its only one.

    Starts from an empty cache: past some shapes dynamo would fall back to eager without a word.
    """
    torch.compiler.reset()
    # A backward pass that is timed by itself goes through one forward many times (retain_graph),
    # which a compiled one with donated buffers refuses.
    torch._functorch.config.donated_buffer = False
    if device == "cpu":
        return partial(torch.compile(flex_attention, dynamic=False), block_mask=mask)
    tuned = torch.compile(flex_attention, dynamic=False, mode="max-autotune-no-cudagraphs")
    return partial(tuned, block_mask=mask, kernel_options={"ROWS_GUARANTEED_SAFE": True})
