"""Every peer there is: what it does, and why it is missing where it is."""

from __future__ import annotations

from . import (
    compiled,
    entmax_package,
    scaled_dot_product,
    semi_structured,
    tomesd_package,
    triton_softmax,
)

PEERS = {
    "torch": "the eager op, output allocated beforehand",
    "copy": "a plain copy of the same tensor: a roof, not a rival",
    "compile": "torch.compile of the plain formula; compiles for seconds per shape",
    "triton": "kernels as Triton's tutorials write them: softmax, matmul (GPU only)",
    "softmax": "our own softmax of the same tensor (sparse maps)",
    "entmax": "entmax from PyPI, what sparse maps call torch's time (relatives)",
    "embedding_bag": "torch's embedding_bag on a finished plan (merge)",
    "tomesd": "tomesd from PyPI (merge)",
    "fp32": "torch's product of the same weight in fp32 (nm, where it is fp16)",
    "cusparselt": "torch's semi-structured weights on cuSPARSELt (nm 2:4, GPU only)",
    "cutlass": "torch's semi-structured weights on CUTLASS (nm 2:4, GPU only)",
    "sdpa_flash": "torch's dense attention, flash (attention, GPU only)",
    "sdpa_cudnn": "torch's dense attention, cuDNN (attention, GPU only)",
    "flex": "torch's FlexAttention, compiled, of the same mask; takes long to compile (attention)",
    "own dense": "our attention with everything kept (attention)",
    "blocks of 64": "our attention with as many elements in blocks of 64 (attention)",
}
ON_CPU = (
    *("copy", "entmax", "softmax", "embedding_bag", "tomesd", "fp32"),
    *("flex", "own dense", "blocks of 64"),
)


def defaults(device: str) -> list[str]:
    """The peers besides torch that are asked for where nobody says which."""
    return list(ON_CPU) if device == "cpu" else [name for name in PEERS if name != "torch"]


def missing(device: str) -> dict[str, str]:
    """Why a peer cannot run here, by name."""
    reasons = {
        "compile": compiled.why_missing(device),
        "triton": triton_softmax.why_missing(device),
        "entmax": entmax_package.why_missing(),
        "tomesd": tomesd_package.why_missing(),
        "cusparselt": semi_structured.why_missing("cusparselt", device),
        "cutlass": semi_structured.why_missing("cutlass", device),
        "sdpa_flash": scaled_dot_product.why_missing("sdpa_flash", device),
        "sdpa_cudnn": scaled_dot_product.why_missing("sdpa_cudnn", device),
        "flex": scaled_dot_product.why_missing("flex", device),
    }
    return {name: reason for name, reason in reasons.items() if reason}
