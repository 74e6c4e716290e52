"""The public functions of the softmax family."""

import torch
from torch import Tensor

_ALGORITHMS = {"auto": 0, "online": 1, "two_pass": 2, "three_pass": 3}
_CAUSAL = {False: 0, True: 1, "upper_left": 1, "lower_right": 2}


def _score_args(x, dim, mask, bias, lengths, causal, scale, dtype=None):
    acc = torch.float64 if torch.float64 in (x.dtype, dtype) else torch.float32
    args = {
        "mask": mask,
        "bias": bias,
        "lengths": lengths,
        "causal": _CAUSAL[causal],
    }
    if isinstance(scale, Tensor):
        args["row_scale"] = scale.to(acc)
    elif scale is not None:
        args["scale"] = float(scale)
    return args


def _normalize(name, x, dim, dtype, masked_rows, algorithm, return_lse, out, score):
    ops = torch.ops.fastops
    op = getattr(ops, f"{name}_lse" if return_lse else name)
    if out is None:
        return op(
            x,
            dim,
            **score,
            zero_masked_rows=masked_rows == "zero",
            dtype=dtype,
            algorithm=_ALGORITHMS[algorithm],
        )
    outs = dict(zip(("out", "lse"), out, strict=True)) if return_lse else {"out": out}
    return op.out(
        x,
        dim,
        **score,
        zero_masked_rows=masked_rows == "zero",
        dtype=dtype,
        algorithm=_ALGORITHMS[algorithm],
        **outs,
    )


def softmax(
    x,
    dim=-1,
    *,
    mask=None,
    bias=None,
    lengths=None,
    causal=False,
    scale=None,
    masked_rows="nan",
    dtype=None,
    return_lse=False,
    algorithm="auto",
    out=None,
):
    score = _score_args(x, dim, mask, bias, lengths, causal, scale, dtype)
    return _normalize("softmax", x, dim, dtype, masked_rows, algorithm, return_lse, out, score)


def log_softmax(
    x,
    dim=-1,
    *,
    mask=None,
    bias=None,
    lengths=None,
    causal=False,
    scale=None,
    masked_rows="nan",
    dtype=None,
    return_lse=False,
    algorithm="auto",
    out=None,
):
    score = _score_args(x, dim, mask, bias, lengths, causal, scale, dtype)
    return _normalize("log_softmax", x, dim, dtype, masked_rows, algorithm, return_lse, out, score)


def logsumexp(
    x, dim, keepdim=False, *, mask=None, bias=None, lengths=None, causal=False, scale=None
):
    score = _score_args(x, dim, mask, bias, lengths, causal, scale)
    return torch.ops.fastops.logsumexp(x, dim, keepdim, **score).to(x.dtype)
