"""The derivative of block-sparse attention, which runs in an op of its own; there is no second."""

from torch.autograd import Function

from .._autograd import apply, differentiated, redispatch
from .._load import op as _op

_LISTS = 5  # tensors of a mask before those by key block


class _Attention(Function):
    @staticmethod
    def forward(ctx, run, q, k, v, scale, sinks, key_bias, mask_shape, *mask):
        out, lse = run(q, k, v, list(mask), mask_shape, scale, sinks, key_bias)
        ctx.save_for_backward(q, k, v, out, lse, sinks, key_bias, *mask)
        ctx.mask_shape, ctx.scale = mask_shape, scale
        return out, lse

    @staticmethod
    def backward(ctx, grad_out, grad_lse):
        q, k, v, out, lse, sinks, key_bias, *mask = ctx.saved_tensors
        if len(mask) == _LISTS:
            raise RuntimeError(
                "fastops.block_sparse_attention: the gradient needs the lists by key block too; "
                "pass mask=[*lists, bits, *mask.transposed()]"
            )
        wanted = [ctx.needs_input_grad[i] for i in (1, 2, 3, 5, 6)]
        if grad_out.stride(-1) != 1:
            grad_out = grad_out.contiguous()
        *grads, dbias = _op("block_sparse_attention_backward")(
            grad_out, grad_lse.contiguous(), q, k, v, out, lse, mask, ctx.mask_shape, ctx.scale,
            sinks, key_bias, wanted,
        )  # fmt: skip
        if wanted[4] and key_bias.shape[1] != dbias.shape[1]:
            dbias = dbias.sum(1, keepdim=True)
        dq, dk, dv, dsinks, dbias = (
            grad if want else None for grad, want in zip((*grads, dbias), wanted, strict=True)
        )
        return None, dq, dk, dv, None, dsinks, dbias, None, *(None,) * len(mask)


class _Gradient(Function):
    """The backward op where its own derivative may be asked for: there is none."""

    @staticmethod
    def forward(ctx, run, grad_out, grad_lse, *args):
        *tensors, sinks, key_bias, mask_shape, scale, wanted, mask = args
        return tuple(
            run(grad_out, grad_lse, *tensors, mask, mask_shape, scale, sinks, key_bias, wanted)
        )

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "fastops.block_sparse_attention: second derivatives are not implemented; "
            "differentiate fastops.attention.reference.attention_reference"
        )


def _attention(op):
    def kernel(keyset, q, k, v, mask, mask_shape, scale, sinks=None, key_bias=None):
        run = redispatch(op, keyset)
        if not differentiated(q, k, v, sinks, key_bias):
            return run(q, k, v, mask, mask_shape, scale, sinks, key_bias)
        return apply(_Attention, run, q, k, v, scale, sinks, key_bias, mask_shape, *mask)

    return kernel


def _attention_backward(op):
    def kernel(
        keyset, grad_out, grad_lse, q, k, v, out, lse, mask, mask_shape, scale, sinks, key_bias,
        wanted,
    ):  # fmt: skip
        run = redispatch(op, keyset)
        tensors = (q, k, v, out, lse)
        rows = (sinks, key_bias)
        if not differentiated(grad_out, grad_lse, *tensors, *rows):
            return run(grad_out, grad_lse, *tensors, mask, mask_shape, scale, *rows, wanted)
        return list(
            apply(
                _Gradient, run, grad_out, grad_lse, *tensors, *rows, mask_shape, scale, wanted, mask
            )
        )

    return kernel


KERNELS = {
    "block_sparse_attention": _attention,
    "block_sparse_attention_backward": _attention_backward,
}
"""Op -> what makes its autograd kernel."""
