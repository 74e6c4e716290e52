"""Equality with torch's FlexAttention, run eagerly, for the same mask functions: out, lse and the
gradients, by the ratio rule against FlexAttention in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

import fastops
from fastops import BlockMask
from tests.attention.problems import DTYPES, Problem, check
from tests.numerics import same_bits

pytestmark = pytest.mark.isa

N = 200
ENDS = torch.tensor([0, 17, 17, 80, 150, N])
DOCUMENT = torch.bucketize(torch.arange(N), ENDS[1:], right=True)


def causal(b, h, q, kv):
    return q >= kv


def window(b, h, q, kv):
    return (q - kv <= 60) & (kv - q <= 10) | (kv < 5)


def documents(b, h, q, kv):
    return DOCUMENT[q] == DOCUMENT[kv]


def prefix(b, h, q, kv):
    return (q >= kv) | (kv < 70)


def custom(b, h, q, kv):
    """Differs by head; rows that keep nothing; whole blocks, partial ones and ones left out."""
    return ((q + kv * (h + 1)) % 7 < 5) & (q // 40 != kv // 50) & (q % 16 != 3) | (
        q // 64 < kv // 128
    )


MASKS = {  # the function, and the closed form where there is one
    "causal": (causal, lambda block: BlockMask.causal(N, block)),
    "window": (window, lambda block: BlockMask.sliding_window(N, 60, 10, 5, block)),
    "documents": (documents, lambda block: BlockMask.documents(ENDS, False, block)),
    "prefix": (prefix, lambda block: BlockMask.prefix_lm(N, 70, block)),
    "custom": (custom, lambda block: BlockMask.from_fn(custom, N, block, heads=4)),
}


def unchanged(score, b, h, q, kv):
    return score


@dataclass
class FlexProblem(Problem):
    """A problem whose plain counterpart is FlexAttention. It refuses gradients on a CPU at its
    front door, so this goes through the operator behind, whose lse is in base 2."""

    flex: object
    made: BlockMask

    def mask(self, block_size) -> BlockMask:
        return self.made

    def plain(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        def call(q, k, v):
            out, lse, *_ = torch.ops.higher_order.flex_attention(
                q, k, v, unchanged, self.flex.as_tuple(), q.shape[-1] ** -0.5, {"BACKEND": "AUTO"}
            )
            return out, lse * math.log(2)

        return self._run(call, [t if dtype is None else t.to(dtype) for t in self.inputs])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("kv_heads", [4, 2], ids=["mha", "gqa"])
def test_same_function(dtype, kind, kv_heads) -> None:
    mod, form = MASKS[kind]
    flex = create_block_mask(mod, None, 4, N, N, device="cpu", BLOCK_SIZE=64)
    problem = Problem.make(
        dtype, heads=4, kv_heads=kv_heads, sq=N, skv=N, d=32, dv=24, kind="dense", extras=False
    )
    keep = BlockMask.from_flex(flex).to_dense()
    made = FlexProblem(problem.inputs, keep, False, flex, form(64))
    check(made, made.ours())
    again = FlexProblem(problem.inputs, keep, False, flex, BlockMask.from_flex(flex))
    assert all(map(same_bits, again.ours()[:2], made.ours()[:2]))
    back = FlexProblem(problem.inputs, keep, False, made.made.to_flex(), made.made)
    for a, b in zip(back.plain(), made.plain(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("lengths", [(113, 203), (203, 113), (1, 130)], ids=str)
def test_other_lengths(lengths) -> None:
    """Positions of a mask function count from 0 on either side, in FlexAttention and in from_fn."""
    sq, skv = lengths
    flex = create_block_mask(custom, None, 4, sq, skv, device="cpu", BLOCK_SIZE=(32, 64))
    inputs = Problem.make(heads=4, kv_heads=1, sq=sq, skv=skv, d=16, extras=False).inputs
    for mask in (BlockMask.from_fn(custom, lengths, (32, 64), heads=4), BlockMask.from_flex(flex)):
        problem = FlexProblem(inputs, mask.to_dense(), False, flex, mask)
        check(problem, problem.ours())


def test_front_door() -> None:
    """The public function, with enable_gqa, gives what the operator behind it does."""
    from torch.nn.attention.flex_attention import flex_attention

    flex = create_block_mask(custom, None, 4, N, N, device="cpu", BLOCK_SIZE=64)
    q, k, v = Problem.make(heads=4, kv_heads=2, sq=N, skv=N, d=32, extras=False).inputs
    flexed = partial(flex_attention, block_mask=flex, enable_gqa=True)
    out = fastops.block_sparse_attention(q, k, v, BlockMask.from_flex(flex))
    torch.testing.assert_close(out, flexed(q, k, v), rtol=1e-5, atol=1e-6)
