"""block_sparse_attention: arguments checked, op called."""

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .. import _checks as check
from .. import _interop, _load
from .._autograd import differentiated
from .block_mask import BlockMask

__all__ = ["block_sparse_attention"]

_NAME = "fastops.block_sparse_attention"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MOST_CHANNELS = 256
_WHOLE = [64, 64, 1, 1]  # mask_shape where every block is kept
_attention = _load.op("block_sparse_attention")


def block_sparse_attention(
    q: Any,
    k: Any,
    v: Any,
    block_mask: BlockMask | None = None,
    *,
    scale: float | None = None,
    sinks: Any = None,
    key_bias: Any = None,
    return_lse: bool = False,
) -> Any:
    """``softmax(scale * q @ k.mT + key_bias) @ v`` over the blocks that a mask keeps.

    Time and memory follow the blocks kept; the matrix of scores is never formed (Dao et al.,
    "FlashAttention", NeurIPS 2022, section 3).

    Args:
        q: [B, Hq, Sq, D], float32, float16 or bfloat16, D up to 256. Any strides whose last is 1,
            here and for k and v. NumPy and other DLPack arrays too.
        k, v: [B, Hkv, Skv, D] and [B, Hkv, Skv, Dv], of q's dtype, Dv up to 256. Hq is a multiple
            of Hkv (grouped and multi-query heads): query head h uses head ``h // (Hq // Hkv)``.
        block_mask: A :class:`fastops.BlockMask` of (Sq, Skv), for 1 or B samples and 1 or Hq heads.
            None: everything is kept.
        scale: Of the scores; default ``D ** -0.5``.
        sinks: [Hq], a score per head that takes weight but has no value (gpt-oss's attention
            sinks). Any floating dtype; worked on in float32, as key_bias is.
        key_bias: [B, Skv] or [B, 1 or Hq, Skv], added to the scores of a key: padding (-inf),
            or the logarithm of merged tokens' sizes.
        return_lse: Also return the logarithm of each row's summed exponentials.

    Returns:
        out [B, Hq, Sq, Dv] of q's dtype; with return_lse also lse, float32 [B, Hq, Sq], natural
        logarithm. A row that keeps nothing has out 0, lse -inf (its sink's score where there are
        sinks) and no gradient.

    Raises:
        TypeError: An argument of the wrong type or dtype.
        ValueError: A wrong shape, stride, value or device.

    Differentiable once in q, k, v, sinks and key_bias, through out and lse. Deterministic. Sums are
    in float32. bf16 on AVX-512 and 16-bit values elsewhere need K and V in another order: at most
    64 MB of them (or one head) are held at a time, and only blocks that some query keeps.
    """
    if _interop.any_foreign(q, k, v, sinks, key_bias):
        return _interop.call(
            _NAME, block_sparse_attention, q, first="q", k=k, v=v, block_mask=block_mask,
            scale=scale, sinks=sinks, key_bias=key_bias, return_lse=return_lse,
        )  # fmt: skip
    _check_heads(q, k, v)
    batch, heads, _, head_dim = q.shape
    if scale is None:
        scale = head_dim**-0.5
    elif isinstance(scale, bool) or not isinstance(scale, Real | torch.SymFloat):
        raise TypeError(f"{_NAME}: expected scale to be a number, got {type(scale).__name__}")
    check.is_bool(_NAME, "return_lse", return_lse)
    if sinks is not None:
        _check_scores("sinks", sinks, q, ((heads,),))
        sinks = sinks.float().contiguous()
    if key_bias is not None:
        keys = k.shape[2]
        _check_scores(
            "key_bias", key_bias, q, ((batch, keys), (batch, 1, keys), (batch, heads, keys))
        )
        key_bias = key_bias.float()
        key_bias = key_bias if key_bias.ndim == 3 else key_bias[:, None]
    mask, mask_shape = [], _WHOLE
    if block_mask is not None:
        _check_mask(block_mask, q, k)
        mask = [*block_mask.lists, block_mask.bits]
        mask_shape = [*block_mask.block_size, block_mask.batch, block_mask.heads]
        if differentiated(q, k, v, sinks, key_bias):
            mask += block_mask.transposed()
    _load.require(_NAME, q.device)
    out, lse = _attention(q, k, v, mask, mask_shape, float(scale), sinks, key_bias)
    return (out, lse) if return_lse else out


def _check_heads(q: Any, k: Any, v: Any) -> None:
    for arg, t in (("q", q), ("k", k), ("v", v)):
        check.is_tensor(_NAME, arg, t)
        if t.dtype not in _DTYPES:
            raise TypeError(
                f"{_NAME}: expected {arg} of dtype float32, float16 or bfloat16, got {t.dtype}"
            )
        if t.ndim != 4:
            raise ValueError(
                f"{_NAME}: expected {arg} of shape [batch, heads, sequence, channels], got "
                f"{tuple(t.shape)}"
            )
        if not 1 <= t.shape[3] <= _MOST_CHANNELS:
            raise ValueError(
                f"{_NAME}: expected {arg}.shape[-1] in [1, {_MOST_CHANNELS}], got {t.shape[3]}"
            )
        if t.stride(3) != 1 and t.shape[3] != 1 and t.numel():
            raise ValueError(
                f"{_NAME}: expected {arg} with stride 1 along its last dim, got {t.stride(3)}; "
                f"pass {arg}.contiguous()"
            )
    for arg, t in (("k", k), ("v", v)):
        if t.dtype != q.dtype and not torch.is_autocast_enabled(q.device.type):
            raise TypeError(f"{_NAME}: expected {arg} of q's dtype {q.dtype}, got {t.dtype}")
        if t.device != q.device:
            raise ValueError(f"{_NAME}: expected {arg} on {q.device} as q is, got {t.device}")
    expected = (
        ("k", k, 0, q.shape[0], "samples of q"),
        ("k", k, 3, q.shape[3], "channels of q"),
        ("v", v, 0, q.shape[0], "samples of q"),
        ("v", v, 1, k.shape[1], "heads of k"),
        ("v", v, 2, k.shape[2], "length of k"),
    )
    for arg, t, dim, size, what in expected:
        if t.shape[dim] != size:
            raise ValueError(
                f"{_NAME}: expected {arg}.shape[{dim}] == {size} ({what}), got {t.shape[dim]}"
            )
    if q.shape[1] and (k.shape[1] == 0 or q.shape[1] % k.shape[1]):
        raise ValueError(
            f"{_NAME}: expected q.shape[1] to be a multiple of k.shape[1] == {k.shape[1]}, got "
            f"{q.shape[1]}"
        )


def _check_scores(arg: str, t: Any, q: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
    check.is_tensor(_NAME, arg, t)
    check.is_floating(_NAME, arg, t)
    if t.device != q.device:
        raise ValueError(f"{_NAME}: expected {arg} on {q.device} as q is, got {t.device}")
    if tuple(t.shape) not in shapes:
        choices = " or ".join(map(str, dict.fromkeys(shapes)))
        raise ValueError(f"{_NAME}: expected {arg} of shape {choices}, got {tuple(t.shape)}")


def _check_mask(mask: Any, q: Tensor, k: Tensor) -> None:
    if not isinstance(mask, BlockMask):
        raise TypeError(
            f"{_NAME}: expected block_mask to be a BlockMask, got {type(mask).__name__}"
        )
    lengths = (q.shape[2], k.shape[2])
    if tuple(mask.seq_lens) != lengths:
        raise ValueError(
            f"{_NAME}: expected a block_mask of lengths {lengths} (of q and k), got "
            f"{tuple(mask.seq_lens)}"
        )
    for what, size, count in (("batch", mask.batch, q.shape[0]), ("heads", mask.heads, q.shape[1])):
        if size not in (1, count):
            raise ValueError(
                f"{_NAME}: expected block_mask.{what} to be 1 or {count} as in q, got {size}"
            )
    if mask.device != q.device:
        raise ValueError(
            f"{_NAME}: expected block_mask on {q.device} as q is, got {mask.device}; use "
            f"block_mask.to(q.device)"
        )
