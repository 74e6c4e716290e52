"""vmap rules of the softmax ops: the batch becomes a leading row dim, and the op is called once."""

from torch import Tensor

# How an argument's shape relates to that of x; the others are not tensors.
_FULL = {"x", "y"}  # x's shape
_ROWS = {"lengths", "row_scale", "row_alpha", "target", "grad_lse", "lse"}  # one value per row
_BROADCAST = {"mask", "bias"}


def vmap_rule(op, kind):
    """The batching rule of a forward or backward op: one call on tensors with one more dim."""
    arguments = op._schema.arguments
    names = [argument.name for argument in arguments]
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    positional = [a.name for a in arguments if not a.kwarg_only]
    rows = _ROWS | ({"grad"} if kind == "logsumexp" else set())
    full = _FULL | (set() if kind == "logsumexp" else {"grad"})
    main = "y" if "y" in names else "x"

    def call(**values):
        args = [values.pop(name) for name in positional]
        return op(*args, **values)

    def rule(info, in_dims, *operands):
        values = dict(zip(names, operands, strict=True))
        batched = dict(zip(names, in_dims, strict=True))
        rank = values[main].ndim - (batched[main] is not None)
        several = isinstance(values["dim"], list | tuple)
        dims = [d % max(rank, 1) for d in (values["dim"] if several else [values["dim"]])]
        row_rank = max(rank - len(dims), 0)

        for name, t in values.items():
            if not isinstance(t, Tensor):
                continue
            own = t.ndim - (batched[name] is not None)
            t = t.unsqueeze(0) if batched[name] is None else t.movedim(batched[name], 0)
            if name in full:
                t = t.expand(info.batch_size, *t.shape[1:])
            elif name in _BROADCAST:
                t = t.reshape(t.shape[0], *(1,) * (rank - own), *t.shape[1:])
            elif own < rank:
                t = t.reshape(t.shape[0], *(1,) * (row_rank - own), *t.shape[1:])
            values[name] = t.unsqueeze(-1) if rank == 0 and name not in rows else t

        values["dim"] = [d + 1 for d in dims] if several else dims[0] + 1
        result = call(**values)
        outputs = result if isinstance(result, tuple) else (result,)
        if rank == 0:
            outputs = tuple(t.reshape(info.batch_size) for t in outputs)
        return (outputs, (0,) * len(outputs)) if isinstance(result, tuple) else (outputs[0], 0)

    def kernel(*args, **kwargs):
        from torch._functorch.autograd_function import custom_function_call_vmap_helper
        from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

        values = {**defaults, **dict(zip(positional, args, strict=False)), **kwargs}
        return custom_function_call_vmap_helper(
            retrieve_current_functorch_interpreter(),
            rule,
            lambda *operands: call(**dict(zip(names, operands, strict=True))),
            *(values[name] for name in names),
        )

    return kernel
