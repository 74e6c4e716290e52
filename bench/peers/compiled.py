"""torch.compile as a peer: inductor's fusion of the plain formula. It allocates its output."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache

import torch


def why_missing(device: str) -> str | None:
    if device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "torch.compile needs a C++ compiler"
    return None


@cache
def _compile(formula: Callable, dim: int) -> Callable:
    """One compiled function per formula and dim; formulas are over the last dim."""

    def run(x, grad, mask):
        x, grad, mask = (t if t is None else t.movedim(dim, -1) for t in (x, grad, mask))
        out = formula(x, grad, mask)
        return out.movedim(-1, dim) if out.dim() == x.dim() else out

    return torch.compile(run, dynamic=False)


def softmax_like(formula: Callable, inputs) -> Callable[[], torch.Tensor]:
    run = _compile(formula, inputs.dim)
    mask = None if inputs.mask is None else inputs.mask.expand(inputs.x.shape)
    return lambda: run(inputs.x, inputs.grad, mask)
