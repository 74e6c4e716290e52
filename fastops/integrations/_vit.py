"""Token merging inside a vision transformer, whatever its package: what a forward pass carries from
layer to layer, and the merge between attention and MLP (ToMe, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..merge import MergePlan, match_tokens, merge_tokens

R = int | tuple[int, float] | Sequence[int]


def schedule(name: str, r: R, layers: int) -> list[int]:
    """r per layer: one number for all, a list, or (r, inflect): from r (1 - inflect) in the first
    layer to r (1 + inflect) in the last, inflect in [-1, 1]."""
    if isinstance(r, Integral) and not isinstance(r, bool):
        return [_checked(name, int(r))] * layers
    if isinstance(r, tuple) and len(r) == 2 and isinstance(r[1], float):
        mean, inflect = r
        if not -1 <= inflect <= 1:
            raise ValueError(f"{name}: expected inflect in [-1, 1], got {inflect}")
        low = int(_checked(name, mean) * (1 - inflect))
        step = (2 * mean - 2 * low) / max(layers - 1, 1)
        return [int(low + step * layer) for layer in range(layers)]
    if isinstance(r, Sequence) and not isinstance(r, str):
        given = [_checked(name, value) for value in r]
        if len(given) > layers:
            raise ValueError(f"{name}: expected at most {layers} values of r, got {len(given)}")
        return given + [0] * (layers - len(given))
    raise TypeError(f"{name}: expected r to be an int, (r, inflect) or a list, got {r!r}")


def _checked(name: str, r: int) -> int:
    if isinstance(r, bool) or not isinstance(r, Integral):
        raise TypeError(f"{name}: expected r to be an int, got {type(r).__name__}")
    if r < 0:
        raise ValueError(f"{name}: expected r >= 0, got {r}")
    return int(r)


@dataclass
class TokenMerging:
    """What the layers of a patched model share; ``model.token_merging``.

    After a forward pass `source` is the plan from the input's tokens to the last layer's, and
    `size` how many each of those stands for. Tokens come in the order of the published code: which
    are sources in the next layer depends on it.
    """

    r: list[int]
    class_token: bool
    distill_token: bool
    proportional: bool
    trace: bool
    size: Tensor | None = None
    log_size: Tensor | None = None
    source: MergePlan | None = None
    kept: Tensor | None = None  # what the projection of the keys has given
    handles: list[RemovableHandle] = field(default_factory=list, repr=False)
    replaced: list[tuple[nn.Module, Callable | None]] = field(default_factory=list, repr=False)

    def begin(self, layer: int) -> None:
        """Called by each layer first: a forward pass starts at layer 0."""
        if layer == 0:
            self.size = self.log_size = self.source = None

    def take_kept(self) -> Tensor:
        kept, self.kept = self.kept, None
        return kept

    def attention_bias(self, dtype: torch.dtype) -> Tensor | None:
        """[B, 1, 1, N], added to the scores: a token that stands for s counts s times."""
        if not self.proportional or self.log_size is None:
            return None
        return self.log_size[:, None, None, :].to(dtype)

    def merge(self, x: Tensor, keys: Tensor, layer: int) -> Tensor:
        """x [B, N, C] with the r most similar tokens by `keys` [B, H, N, D] merged."""
        if self.r[layer] <= 0:
            return x
        plan = match_tokens(
            keys,
            r=self.r[layer],
            class_token=self.class_token,
            distill_token=self.distill_token,
            order="reference",
        )
        x, self.size, self.log_size = merge_tokens(x, plan, size=self.size, return_size=True)
        if self.trace:
            self.source = plan if self.source is None else self.source.then(plan)
        return x


# Of what is put on a model nothing is a closure: copies and pickles of it refer to themselves.


def attach(model: nn.Module, state: TokenMerging) -> None:
    model.token_merging = state


def check_unpatched(name: str, model: nn.Module) -> None:
    if hasattr(model, "token_merging"):
        raise ValueError(f"{name}: expected a model that is not patched; unpatch it first")


def unpatch(model: nn.Module) -> nn.Module:
    """Takes a patch off; the model is as it was. Nothing happens to a model without one."""
    state = getattr(model, "token_merging", None)
    if state is not None:
        for handle in state.handles:
            handle.remove()
        for module, own in state.replaced:
            del module.forward
            if own is not None:
                module.forward = own
        del model.token_merging
    return model


def replace_forward(state: TokenMerging, module: nn.Module, forward: Callable, index: int) -> None:
    """``forward(module, state, index, ...)`` in place of the module's own, until it is undone."""
    state.replaced.append((module, module.__dict__.get("forward")))
    module.forward = partial(forward, module, state, index)


def keep_output(state: TokenMerging, module: nn.Module) -> None:
    """The last output of a module is left in `state.kept`."""
    state.handles.append(module.register_forward_hook(partial(_keep, state)))


def _keep(state: TokenMerging, module: nn.Module, given: tuple, output: Tensor) -> None:
    state.kept = output
