"""sparsify_: a model's linear layers become N:M sparse, in place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import pattern as patterns

__all__ = ["Sparsified", "sparsify_"]

Scores = Mapping[str, Tensor] | Callable[[str, nn.Linear], Tensor | None]


@dataclass
class Sparsified:
    """What :func:`sparsify_` did: names of swapped layers, and why others were left alone."""

    pattern: str
    swapped: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.swapped)} linear layers are {self.pattern} now"]
        lines += [f"  left alone: {name}: {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def sparsify_(
    model: nn.Module,
    pattern: str,
    filter: Callable[[str, nn.Linear], bool] | None = None,
    scores: Scores | None = None,
) -> Sparsified:
    """Replaces the ``nn.Linear`` layers inside `model` by :class:`fastops.nn.NMLinear`.

    Args:
        model: changed in place; a model that is itself an ``nn.Linear`` cannot be.
        pattern: ``"N:M"``, 1 <= N <= M <= 32.
        filter: called with the name and the layer; False leaves it alone.
        scores: what to keep (:func:`fastops.nm_mask`): a tensor for each name, or a function of
            name and layer; ``|w|`` where there is none.

    Returns:
        :class:`Sparsified`; ``print`` says what was left alone and why.

    Raises:
        TypeError, ValueError: a wrong argument, before anything is changed.
    """
    from ..nn import NMLinear

    name = "fastops.sparsify_"
    parsed = patterns.parse(name, pattern)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: expected model to be an nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.Linear):
        raise ValueError(
            f"{name}: expected a model that holds linear layers, got an nn.Linear itself; use "
            "fastops.nn.NMLinear.from_linear"
        )
    result = Sparsified(str(parsed))
    owners = _owners(model)
    new: dict[nn.Module, nn.Module] = {}
    for path, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        if why := _why_not(path, layer, parsed, filter, owners):
            result.left[path] = why
            continue
        score = scores(path, layer) if callable(scores) else (scores or {}).get(path)
        new[layer] = NMLinear.from_linear(layer, str(parsed), scores=score)
        result.swapped.append(path)
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if child in new:
                setattr(parent, key, new[child])
    return result


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Parameter -> the names of the modules that hold it."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(path)
    return owners


def _why_not(path, layer, pattern, filter, owners) -> str | None:
    """The reason for leaving a layer alone, or None."""
    if parametrize.is_parametrized(layer):
        return "its parameters are parametrized"
    if type(layer) is not nn.Linear:
        return f"it is a {type(layer).__name__}, which may do more than nn.Linear"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "it has hooks"
    shared = [other for other in owners[id(layer.weight)] if other != path]
    if shared:
        return f"its weight is shared with {', '.join(shared)}"
    if layer.in_features % pattern.m:
        return f"in_features {layer.in_features} is not divisible by {pattern.m}"
    if not layer.weight.is_floating_point() or layer.weight.dtype.itemsize > 4:
        return f"its dtype is {layer.weight.dtype}"
    if filter is not None and not filter(path, layer):
        return "filter said no"
    return None
