"""A call of every public function for every dtype, for tests of how kernels are launched: under
graph capture, on other streams and devices, on misaligned and on foreign arrays. What the values
must be is for the families' own tests to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fastops
from fastops.nm import pattern as patterns
from tests.numerics import FLOATS

WEIGHTS = (torch.float32, torch.float16, torch.bfloat16)
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Call:
    op: str  # of fastops
    variant: str
    dtype: torch.dtype
    make: Callable[[torch.dtype], Inputs]  # on the CPU, the same every time
    run: Callable[..., Any]  # of the inputs, by name
    wrt: tuple[str, ...] = ()  # inputs to differentiate by
    captures: bool = True  # False: waits for the device, as documented
    foreign: bool = False  # takes CuPy arrays as its one input x

    @property
    def id(self) -> str:
        return f"{self.op}-{self.variant}-{str(self.dtype).removeprefix('torch.')}"

    def inputs(self, device: str | torch.device = "cpu") -> Inputs:
        return {name: t.to(device) for name, t in self.make(self.dtype).items()}

    def results(self, inputs: Inputs) -> list[Tensor]:
        """Outputs, and gradients of `wrt` for a made-up gradient of the outputs."""
        leaves = [inputs[name].detach().requires_grad_() for name in self.wrt]
        out = tree_leaves(self.run(**{**inputs, **dict(zip(self.wrt, leaves, strict=True))}))
        tensors = [t for t in out if isinstance(t, Tensor)]
        differentiable = [t for t in tensors if t.requires_grad]
        if not differentiable:
            return tensors
        gradients = [made_up_gradient(t) for t in differentiable]
        found = torch.autograd.grad(differentiable, leaves, gradients)
        return [t.detach() for t in tensors] + list(found)


def made_up_gradient(t: Tensor) -> Tensor:
    steps = torch.arange(t.numel(), device=t.device).remainder(7).view(t.shape)
    return (steps.to(t.dtype) - 3) / 4


def normal(*shape: int, dtype: torch.dtype, seed: int = 0, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * spread).to(dtype)


def booleans(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.8


def rows(*shape: int, spread: float = 2.0) -> Callable[[torch.dtype], Inputs]:
    return lambda dtype: {"x": normal(*shape, dtype=dtype, spread=spread)}


def masked(dtype: torch.dtype) -> Inputs:
    return {"x": normal(3, 21, 40, dtype=dtype), "mask": booleans(3, 1, 40)}


def scored(dtype: torch.dtype) -> Inputs:
    return {
        **masked(dtype),
        "bias": normal(40, dtype=dtype, seed=2),
        "lengths": torch.tensor([40, 7, 21])[:, None],
    }


def _softmax_calls() -> list[Call]:
    calls = []
    # Lengths at which the launcher picks another kernel (softmax/cuda/heuristics.h).
    shapes = {"short": (70, 33), "rows": (33, 197), "block": (9, 5000), "stream": (140, 33000),
              "split": (2, 200_003)}  # fmt: skip
    for dtype in FLOATS:
        for op in ("softmax", "log_softmax", "logsumexp"):
            f = getattr(fastops, op)
            plain = {name: (shape, -1) for name, shape in shapes.items()}
            dims = {**plain, "columns": ((5, 130, 24), 1), "tuple": ((6, 7, 9), (0, 2))}
            for name, (shape, dim) in dims.items():
                run = {"run": lambda x, f=f, dim=dim: f(x, dim), "wrt": ("x",), "foreign": True}
                calls.append(Call(op, name, dtype, rows(*shape), **run))

            def full(x, mask, bias, lengths, f=f):
                return f(x, -1, mask=mask, bias=bias, lengths=lengths, causal=True, scale=0.5)

            calls.append(Call(op, "full", dtype, scored, full, wrt=("x", "bias")))
        calls += [
            Call("softmax", "inference", dtype, rows(33, 197), lambda x: fastops.softmax(x)),
            Call("log_softmax", "inference", dtype, rows(33, 197),
                 lambda x: fastops.log_softmax(x)),
            *(Call(op, "lse", dtype, rows(33, 197),
                   lambda x, op=op: getattr(fastops, op)(x, return_lse=True), wrt=("x",))
              for op in ("softmax", "log_softmax")),
        ]  # fmt: skip
    return calls


def _targets(dtype: torch.dtype) -> Inputs:
    return {"x": normal(40, 90, dtype=dtype), "target": torch.arange(40) % 90}


def _relative_calls() -> list[Call]:
    calls = []
    maps = {
        "sparsemax": fastops.sparsemax,
        "entmax15": fastops.entmax15,
        "entmax": lambda x, **more: fastops.entmax(x, 1.3, **more),
        "softpick": fastops.softpick,
        "stablemax": fastops.stablemax,
        "log_stablemax": fastops.log_stablemax,
        "pladis_softmax": lambda x, **more: fastops.pladis_softmax(x, 0.7, **more),
    }
    losses = {
        "sparsemax_loss": fastops.sparsemax_loss,
        "entmax15_loss": fastops.entmax15_loss,
        "entmax_loss": lambda x, target: fastops.entmax_loss(x, target, 1.3),
    }
    for dtype in FLOATS:
        for op, f in maps.items():
            calls += [
                Call(op, "rows", dtype, rows(33, 197), f, wrt=("x",), foreign=True),
                Call(op, "long", dtype, rows(3, 20_001, spread=0.1), f, wrt=("x",)),
                Call(op, "mask", dtype, masked, f, wrt=("x",)),
            ]
        calls += [Call(op, "rows", dtype, _targets, f, wrt=("x",)) for op, f in losses.items()]
        for k in (1, 8):
            topk = {"run": lambda x, k=k: fastops.softmax_topk(x, k), "wrt": ("x",)}
            calls.append(Call("softmax_topk", f"k{k}", dtype, rows(33, 197), **topk))
        calls.append(
            Call("entmax", "alpha", dtype, lambda dtype: {
                "x": normal(33, 197, dtype=dtype),
                "alpha": torch.linspace(1.1, 2, 33, dtype=torch.float64 if dtype == torch.float64
                                        else torch.float32),
            }, lambda x, alpha: fastops.entmax(x, alpha), wrt=("x", "alpha"), captures=False)
        )  # fmt: skip
    return calls


def _sparse(pattern: str, x_rows: int, features: int = 96, out: int = 80) -> Callable:
    def make(dtype: torch.dtype) -> Inputs:
        w = normal(out, features, dtype=dtype, seed=3, spread=0.2)
        weight = fastops.nm_compress(fastops.nm_prune(w, pattern), pattern)
        return {
            "x": normal(x_rows, features, dtype=dtype),
            "values": weight.values,
            "indices": weight.indices,
            "bias": normal(out, dtype=dtype, seed=4),
        }

    return make


def _nm_calls() -> list[Call]:
    calls = []
    for dtype in WEIGHTS:
        for pattern in ("2:4", "1:4", "3:8"):
            for x_rows in (5, 200):

                def linear(x, values, indices, bias, pattern=pattern):
                    parsed = patterns.parse("calls", pattern)
                    # Unchecked: the check waits for the device.
                    weight = fastops.NMWeight(values, indices, parsed, x.shape[-1], _checked=True)
                    return fastops.nm_linear(x, weight, bias, activation="gelu")

                name = f"{pattern.replace(':', 'of')}-{x_rows}"
                wrt = ("x", "values", "bias")
                calls.append(
                    Call("nm_linear", name, dtype, _sparse(pattern, x_rows), linear, wrt=wrt)
                )
        calls += [
            Call("nm_mask", "3of8", dtype, rows(40, 64), lambda x: fastops.nm_mask(x, "3:8")),
            Call("nm_prune", "2of4", dtype, rows(40, 64), lambda x: fastops.nm_prune(x, "2:4"),
                 wrt=("x",)),
            Call("nm_compress", "2of4", dtype, rows(40, 64), _compress, captures=False),
        ]  # fmt: skip
    return calls


def _compress(x: Tensor) -> list[Tensor]:
    weight = fastops.nm_compress(fastops.nm_prune(x, "2:4"), "2:4")
    checked = fastops.NMWeight(weight.values, weight.indices, "2:4", x.shape[-1])
    return [weight.values, weight.indices, checked.dense()]


def _tokens(dtype: torch.dtype) -> Inputs:
    x, metric = normal(3, 65, 48, dtype=dtype), normal(3, 65, 16, dtype=dtype, seed=5)
    return {"x": x, "metric": metric}


def _merge_calls() -> list[Call]:
    def match(metric: Tensor) -> fastops.MergePlan:
        return fastops.match_tokens(metric, r=11, class_token=True)

    def there(x, metric):
        y, size, log_size = fastops.merge_tokens(x, match(metric), size=x.new_ones(x.shape[:2]))
        return y, size, log_size

    def there_and_back(x, metric):
        plan = match(metric)
        return fastops.unmerge_tokens(fastops.merge_tokens(x, plan), plan)

    def reduced(x, metric, mode):
        return fastops.merge_tokens(x, match(metric), mode=mode)

    def twice(x, metric):
        first = match(metric)
        return first.then(fastops.match_tokens(metric[:, : first.num_out], r=7))

    calls = []
    for dtype in FLOATS:
        calls += [
            Call("match_tokens", "alternate", dtype, _tokens, lambda x, metric: match(metric)),
            Call("match_tokens", "kth", dtype, _tokens,
                 lambda x, metric: fastops.match_tokens(metric, r=9, partition="kth", k=3)),
            Call("match_tokens", "grid", dtype, _tokens,
                 lambda x, metric: fastops.match_tokens(
                     metric, r=9, partition="grid", grid=(8, 8), class_token=True)),
            Call("match_tokens", "then", dtype, _tokens, twice),
            Call("merge_tokens", "sizes", dtype, _tokens, there, wrt=("x",)),
            *(Call("merge_tokens", mode, dtype, _tokens,
                   lambda x, metric, mode=mode: reduced(x, metric, mode), wrt=("x",))
              for mode in ("sum", "max", "mlerp")),
            Call("unmerge_tokens", "back", dtype, _tokens, there_and_back, wrt=("x",)),
            Call("prune_tokens", "pool", dtype, lambda dtype: {
                "x": normal(3, 65, 48, dtype=dtype),
                "scores": normal(3, 65, dtype=torch.float32, seed=6),
            }, lambda x, scores: fastops.prune_tokens(x, scores, 20, pool=3, metric=x), wrt=("x",)),
        ]  # fmt: skip
    return calls


def _heads(channels: int, length: int = 300) -> Callable[[torch.dtype], Inputs]:
    def make(dtype: torch.dtype) -> Inputs:
        return {
            "q": normal(2, 4, length, channels, dtype=dtype, seed=7, spread=1.0),
            "k": normal(2, 2, length, channels, dtype=dtype, seed=8, spread=1.0),
            "v": normal(2, 2, length, channels, dtype=dtype, seed=9, spread=1.0),
            "sinks": normal(4, dtype=torch.float32, seed=10),
            "key_bias": normal(2, length, dtype=torch.float32, seed=11),
        }

    return make


def _attention_calls() -> list[Call]:
    def attend(q, k, v, sinks, key_bias, mask=None):
        kept = None if mask is None else mask(q.shape[2]).to(q.device)
        return fastops.block_sparse_attention(
            q, k, v, kept, sinks=sinks, key_bias=key_bias, return_lse=True
        )

    masks = {
        "dense": None,
        "window": lambda n: fastops.BlockMask.sliding_window(n, 40, 3, block_size=32),
        "causal": lambda n: fastops.BlockMask.causal(n, block_size=64),
    }
    wrt = ("q", "k", "v", "sinks", "key_bias")
    calls = []
    for dtype in WEIGHTS:
        # Masks come from lists on the host: a copy that a graph may not capture.
        for name, mask in masks.items():
            run = partial(attend, mask=mask)
            captures = mask is None
            calls.append(
                Call(
                    "block_sparse_attention",
                    name,
                    dtype,
                    _heads(64),
                    run,
                    wrt=wrt,
                    captures=captures,
                )
            )
        for channels in (40, 128, 256):
            calls.append(
                Call(
                    "block_sparse_attention",
                    f"d{channels}",
                    dtype,
                    _heads(channels, 100),
                    attend,
                    wrt=wrt,
                )
            )
    return calls


CALLS = [
    *_softmax_calls(), *_relative_calls(), *_nm_calls(), *_merge_calls(), *_attention_calls(),
]  # fmt: skip
