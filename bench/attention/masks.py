"""What making a mask of a long sequence takes on the CPU: closed forms cost the blocks they keep.

No peer: FlexAttention's create_block_mask and a mask for SDPA look at every element, 17 GB of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastops import BlockMask

from ..core.case import OURS, Accuracy, Case, Workload

LENGTH, BLOCK = 131_072, 128
DOCUMENTS = 41
SHORT = 1000  # of the masks that are compared, element by element


def _edges(length: int) -> list[int]:
    """Documents of about the same length, off the blocks' edges."""
    return [length * i // DOCUMENTS for i in range(DOCUMENTS + 1)]


def _document(length: int) -> Tensor:
    return torch.bucketize(torch.arange(length), torch.tensor(_edges(length)), right=True)


def _same_document(length: int) -> Tensor:
    return _document(length)[:, None] == _document(length)


# Name -> how to make it, and its elements.
FORMS: dict[str, tuple[Callable[[int], BlockMask], Callable[[int], Tensor]]] = {
    "causal": (
        partial(BlockMask.causal, block_size=BLOCK),
        lambda n: torch.ones(n, n, dtype=torch.bool).tril(),
    ),
    "documents": (
        lambda n: BlockMask.documents(_edges(n), block_size=BLOCK),
        _same_document,
    ),
    "causal documents": (
        lambda n: BlockMask.documents(_edges(n), causal=True, block_size=BLOCK),
        lambda n: _same_document(n).tril(),
    ),
}


def prepare(case: Case) -> Workload:
    make, elements = FORMS[case.variant]
    mask = make(case.shape[0])
    tensors = (*mask.lists, mask.bits)
    traffic = sum(t.numel() * t.element_size() for t in tensors)

    def verify() -> Accuracy:
        wrong = (make(SHORT).to_dense()[0, 0] != elements(SHORT)).float().mean().item()
        return Accuracy(wrong, 0.0, 0.0)

    return Workload({OURS: [partial(make, case.shape[0])]}, traffic, verify, host=True)
