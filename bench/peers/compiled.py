"""torch.compile as a peer: inductor's fusion of the plain formula. It allocates its output."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache

import torch

from . import tome as eager
from . import triton_softmax


def why_missing(device: str) -> str | None:
    if device == "cuda":
        return None if triton_softmax.triton else "Triton is not installed"
    return None if shutil.which("g++") or shutil.which("clang++") else "there is no C++ compiler"


@lru_cache(maxsize=1)
def _compile(formula: Callable, dim: int, key: tuple) -> Callable:
    """The formula, which is over the last dim, compiled for one case.

    Starts from an empty cache: past a few shapes dynamo would fall back to eager without a word.
    The thread count is part of `key`, for inductor builds it in.
    """
    torch.compiler.reset()

    def run(x, grad, mask):
        x, grad, mask = (t if t is None else t.movedim(dim, -1) for t in (x, grad, mask))
        out = formula(x, grad, mask)
        return out.movedim(-1, dim) if out.dim() == x.dim() else out

    return torch.compile(run, dynamic=False)


def softmax_like(formula: Callable, inputs) -> Callable[[], torch.Tensor]:
    x, grad, mask = inputs.x, inputs.grad, inputs.mask
    run = _compile(formula, inputs.dim, (x.shape, x.dtype, torch.get_num_threads()))
    mask = None if mask is None else mask.expand(x.shape)
    return lambda: run(x, grad, mask)


@lru_cache(maxsize=1)
def _compile_tome(key: tuple) -> Callable:
    torch.compiler.reset()

    def run(metric, x, size, r):
        merge, _ = eager.tome(metric, r, class_token=True)
        return eager.weighted(merge, x, size.to(x.dtype))

    return torch.compile(run, dynamic=False)


def tome(metric, x, size, r: int) -> Callable[[], tuple]:
    """ToMe's matching and merging as one compiled function. Compiles at its first call."""

    def run() -> tuple:
        key = (metric.shape, x.shape, x.dtype, r, torch.get_num_threads())
        return _compile_tome(key)(metric, x, size, r)

    return run
