"""What the families' autograd kernels share. Such a kernel is a Python function registered for the
Autograd key; it is given the dispatcher's keyset and calls the op below."""

from functools import partial

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_compiling

_PLAIN = Tensor, torch.nn.Parameter
# Found once: each name that is looked up costs where caches are cold.
_is_grad_enabled, _autocast = torch.is_grad_enabled, torch._C._is_any_autocast_enabled
_dispatch_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._are_functorch_transforms_active


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether a derivative of any of the tensors may be wanted, backward or forward."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def straight(x: Tensor, *others: Tensor | None) -> bool:
    """Whether an op of these may go straight to its kernel: they are memory of one device and
    nothing else, no derivative is wanted, and no compiler, transform, mode or autocast has to see
    it. Where other memory has taken the caches, asking all of these by way of the dispatcher takes
    longer than a small kernel."""
    if x is None or is_compiling() or forward_ad._current_level >= 0:
        return False
    grad, device = _is_grad_enabled(), getattr(x, "device", None)
    for t in (x, *others):
        if t is None:
            continue
        if type(t) not in _PLAIN or t.device != device or (grad and t.requires_grad):
            return False
    return not (_dispatch_modes() or _transforms() or _autocast())


def apply(function: type[Function], *args):
    """`function.apply` inside a dispatcher kernel, which sees one functorch level at a time;
    Function.apply itself would refuse under torch.func, taking it for a call from outside."""
    if not torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    from torch._functorch.autograd_function import enable_single_level_autograd_function

    with enable_single_level_autograd_function():
        return super(Function, function).apply(*args)


def redispatch(op, keyset):
    """A call of the op below autograd, of this functorch level only: the levels outside still
    differentiate, so neither their autograd keys nor their grad mode may be switched off here."""
    below = keyset & torch._C._after_autograd_keyset
    if not torch._C._are_functorch_transforms_active():
        return partial(op.redispatch, below)

    def call(*args, **kwargs):
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return op.redispatch(below, *args, **kwargs)

    return call
