"""match_tokens, merge_tokens and unmerge_tokens: arguments checked, ops called."""

from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import Tensor

from .. import _checks as check
from .. import _interop, _load
from .._autograd import straight
from .ops import accumulation_dtype
from .partition import make_partition
from .plan import MergePlan
from .reference import MODES, ORDERS

__all__ = ["match_tokens", "merge_tokens", "unmerge_tokens"]

_match, _plan = _load.op("token_match"), _load.op("token_plan")
_merge, _unmerge = _load.op("merge_tokens"), _load.op("unmerge_tokens")
_straight_match, _straight_plan = _load.fast_op("token_match"), _load.fast_op("token_plan")
_straight_merge = _load.fast_op("merge_tokens")
_REFUSED = (IndexError, RuntimeError, TypeError, ValueError)  # what is wrong is said further on
_MAX_TENSORS = 8


def match_tokens(
    metric: Any,
    *,
    r: int | None = None,
    ratio: float | None = None,
    threshold: float | None = None,
    partition: Literal["alternate", "kth", "random", "grid"] = "alternate",
    k: int = 2,
    grid: tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    class_token: bool = False,
    distill_token: bool = False,
    padding_mask: Any = None,
    order: Literal["position", "reference"] = "position",
    generator: torch.Generator | None = None,
) -> MergePlan:
    """Bipartite soft matching (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023,
    section 3): each source token finds its most similar destination by cosine, and the r sources
    with the greatest similarity merge into theirs.

    The score matrix is never formed. Nothing here is differentiated.

    Args:
        metric: [B, N, C], or [B, H, N, C], whose mean over H is taken on the way (ToMe: the keys of
            the attention). float32, float64, float16 or bfloat16, any strides; read once or twice,
            never copied. NumPy and other DLPack arrays too; the plan always holds torch tensors.
        r: How many sources merge, per sample. More than there are to merge is cut (for "alternate"
            to ``(N - protected) // 2``); 0 merges none.
        ratio: r as a share of N, in [0, 1]; ``int(N * ratio)``.
        threshold: Only sources whose cosine is greater merge (Bonnaerens and Dambre, "Learned
            Thresholds Token Merging", TMLR 2023); r or ratio may limit them further. The number of
            rows then differs by sample: the plan has N rows, of which ``lengths`` are in use.
        partition: Which tokens are destinations. "alternate": every second one. "kth": every k-th,
            and all others merge if nothing else is asked for. "random": all but r tokens drawn per
            sample; the r merge. "grid": one drawn from each cell of ``stride`` in a ``grid`` of
            rows and columns, the same for all samples (Bolya and Hoffman, "Token Merging for Fast
            Stable Diffusion", 2023); without a generator the top left one. Tokens of cells that
            are cut off at the edge are sources.
        k: Of "kth".
        grid: (rows, columns) with ``rows * columns == N`` (without class and distillation token).
        stride: (rows, columns) of a cell, or one number for both; 2 if not given.
        class_token, distill_token: Token 0, token 1 neither merges nor receives.
        padding_mask: bool [B, N], True where there is no token: it goes to no row (-1).
        order: "position": output rows are in the order of the tokens that stay. "reference": as the
            published code has them: unmerged sources by falling similarity (by position if there is
            a class token), then destinations; with a distillation token it comes second.
        generator: For "random" and "grid"; drawn on its device. "random" without one uses torch's.
            torch.compile breaks the graph at one.

    Returns:
        A :class:`MergePlan` of N tokens and N - r rows; with padding at most
        ``max(N - r, sources + 1, destinations + 1)`` rows, with a threshold at most N.

    Zero vectors have cosine 0 with everything. Vectors with a NaN or an infinity merge last, into
    the first destination. Among equal similarities the least destination wins and the least source
    merges first.

    Raises:
        TypeError: An argument of the wrong type or dtype.
        ValueError: A wrong shape or value; not exactly one way given to say how many merge.

    O(N^2 C) time, O(N) memory beside blocks in cache. Deterministic; a sample's plan does not
    depend on the others (but for "random").
    """
    name = "fastops.match_tokens"
    alone = threshold is padding_mask is grid is stride is generator is None
    if alone and partition == "alternate" and straight(metric):
        try:
            shape = metric.shape
            args = _alternate(shape[0], shape[-2], r, ratio, class_token, distill_token, order)
            return _match_straight(metric, *args)
        except _REFUSED:
            pass
    metric, padding_mask = (
        _interop._to_tensor(name, arg, value) if _interop.is_foreign(value) else value
        for arg, value in (("metric", metric), ("padding_mask", padding_mask))
    )
    check.is_tensor(name, "metric", metric)
    check.is_floating(name, "metric", metric)
    if metric.ndim not in (3, 4):
        raise ValueError(
            f"{name}: expected metric of shape [B, N, C] or [B, H, N, C], got {tuple(metric.shape)}"
        )
    if metric.ndim == 4 and metric.shape[1] == 0:
        raise ValueError(f"{name}: expected metric of at least one head, got {metric.shape}")
    check.one_of(name, "order", order, ORDERS[:2])
    check.is_bool(name, "class_token", class_token)
    check.is_bool(name, "distill_token", distill_token)
    batch, n = metric.shape[0], metric.shape[-2]
    if padding_mask is not None:
        check_padding(name, padding_mask, metric, batch, n)
    r = _amount(name, n, r, ratio, threshold, partition)
    part = make_partition(
        name, partition, batch, n, r, k, grid, stride, class_token, distill_token, generator,
        metric.device,
    )  # fmt: skip
    _load.require(name, metric.device)
    args = (*part.args, class_token, distill_token, padding_mask)
    with torch.no_grad():
        scores, matches = _match(metric.detach(), *args)
        rows = part.rows(n, threshold is not None, padding_mask is not None)
        plan = _plan(scores, matches, n, part.r, rows, *args, threshold, ORDERS.index(order))
    return MergePlan(*plan)


@lru_cache(maxsize=256, typed=True)
def _alternate(batch, n, r, ratio, class_token, distill_token, order) -> tuple:
    """What the ops of a match are told, where nothing but these arguments is given."""
    name = "fastops.match_tokens"
    check.one_of(name, "order", order, ORDERS[:2])
    check.is_bool(name, "class_token", class_token)
    check.is_bool(name, "distill_token", distill_token)
    r = _amount(name, n, r, ratio, None, "alternate")
    part = make_partition(
        name, "alternate", batch, n, r, 2, None, None, class_token, distill_token, None, None
    )
    args = (*part.args, class_token, distill_token, None)
    return args, (n, part.r, part.rows(n, False, False), *args, None, ORDERS.index(order))


def _match_straight(metric: Tensor, match_args: tuple, plan_args: tuple) -> MergePlan:
    with torch._C._AutoDispatchBelowAutograd():
        scores, matches = _straight_match(metric, *match_args)
        return MergePlan(*_straight_plan(scores, matches, *plan_args))


def check_padding(name: str, mask: Any, like: Tensor, batch: int, n: int) -> None:
    check.is_tensor(name, "padding_mask", mask)
    check.is_dtype(name, "padding_mask", mask, torch.bool)
    check.same_device(name, "padding_mask", mask, like)
    if tuple(mask.shape) != (batch, n):
        raise ValueError(
            f"{name}: expected padding_mask of shape {(batch, n)}, got {tuple(mask.shape)}"
        )


def _amount(name: str, n: int, r: Any, ratio: Any, threshold: Any, partition: str) -> int | None:
    """How many sources may merge; None: all that the rest of the arguments allow."""
    if r is not None and ratio is not None:
        raise ValueError(f"{name}: expected r or ratio, got both")
    if threshold is not None:
        _number(name, "threshold", threshold)
        if threshold != threshold:
            raise ValueError(f"{name}: expected threshold to be a number, got nan")
    if r is not None:
        if isinstance(r, bool) or not (isinstance(r, Integral | torch.SymInt)):
            raise TypeError(f"{name}: expected r to be an int, got {type(r).__name__}")
        if r < 0:
            raise ValueError(f"{name}: expected r >= 0, got {r}")
        return r
    if ratio is not None:
        _number(name, "ratio", ratio)
        if not 0 <= ratio <= 1:
            raise ValueError(f"{name}: expected ratio in [0, 1], got {ratio}")
        return int(n * ratio)
    if partition == "random" or (threshold is None and partition != "kth"):
        amounts = "r or ratio" if partition == "random" else "r, ratio or threshold"
        raise ValueError(f"{name}: expected {amounts} to say how many tokens merge")
    return None


def _number(name: str, arg: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {arg} to be a number, got {type(value).__name__}")


def _check_plan(name: str, plan: Any, like: Tensor) -> None:
    if not isinstance(plan, MergePlan):
        raise TypeError(f"{name}: expected plan to be a MergePlan, got {type(plan).__name__}")
    for field, t in zip(MergePlan._fields, plan, strict=True):
        if not isinstance(t, Tensor) or t.dtype != torch.int32:
            kind = t.dtype if isinstance(t, Tensor) else type(t).__name__
            raise TypeError(f"{name}: expected plan.{field} to be an int32 tensor, got {kind}")
        if t.device != like.device:
            raise ValueError(
                f"{name}: expected plan.{field} on {like.device} as x is, got {t.device}"
            )
    shape = tuple(plan.map.shape)
    if (
        len(shape) != 2
        or tuple(plan.perm.shape) != shape
        or plan.offsets.ndim != 2
        or plan.offsets.shape[0] != shape[0]
        or plan.offsets.shape[1] == 0
    ):
        raise ValueError(
            f"{name}: expected a plan of map [B, N], offsets [B, M + 1] and perm [B, N], got "
            f"{shape}, {tuple(plan.offsets.shape)} and {tuple(plan.perm.shape)}"
        )


def _check_rows(name: str, arg: str, x: Any, plan: MergePlan, rows: int, what: str) -> Tensor:
    """x as [B, ..., rows, C], one sample repeated for all where x has one."""
    check.is_tensor(name, arg, x)
    check.is_floating(name, arg, x)
    if x.ndim not in (3, 4):
        raise ValueError(
            f"{name}: expected {arg} of shape [B, N, C] or [B, H, N, C], got {tuple(x.shape)}"
        )
    if x.shape[-2] != rows:
        raise ValueError(
            f"{name}: expected {arg}.shape[-2] == {rows} ({what} of the plan), got {x.shape[-2]}"
        )
    batch = plan.map.shape[0]
    if x.shape[0] == 1 and batch != 1:
        return x.expand(batch, *x.shape[1:])
    if x.shape[0] != batch:
        raise ValueError(
            f"{name}: expected {arg}.shape[0] == {batch} (samples of the plan), got {x.shape[0]}"
        )
    return x


def _mode(name: str, mode: Any) -> int:
    check.one_of(name, "mode", mode, MODES)
    return MODES.index(mode)


def merge_tokens(
    x: Any,
    plan: MergePlan,
    *,
    size: Any = None,
    mode: Literal["mean", "sum", "max", "mlerp"] = "mean",
    return_size: bool | None = None,
) -> Any:
    """The rows that a plan makes of tokens, for one tensor or several in one launch.

    Args:
        x: [B, N, C] or [B, H, N, C] (the H heads go the same way), or a tuple of up to 8 of them,
            of any floating dtypes and widths; a tensor of one sample serves all. Any strides.
        plan: A :class:`MergePlan` of B samples and N tokens.
        size: [B, N] or [B, N, 1], how many tokens each one stands for; the weights of the mean.
            None: one each. Padding and pruned tokens count for nothing. Sizes below 0 are not
            looked for: they enter the sums as they are, and the logarithm of a negative sum is NaN.
        mode: "mean" weighted by size; "sum"; "max" per channel; "mlerp", the mean scaled to the
            greatest norm of its tokens (Kim et al., "Token Fusion", WACV 2024, section 3.2).
        return_size: Also return the sizes; default: if size is given.

    Returns:
        y, [B, M, C] or [B, H, M, C] of x's dtype, or a tuple of them. A row of one token is that
        token, bit for bit; a row of none is 0, and so is a mean of sizes that sum to 0.
        With sizes a triple ``(y, size, log_size)``: the sums of sizes, shaped as `size` was, and
        their logarithm [B, M], the bias of proportional attention (ToMe, section 3), -inf for rows
        without tokens. float32, or float64 where x is.

    Raises:
        TypeError: An argument of the wrong type or dtype.
        ValueError: A shape that does not fit the plan, or tensors on different devices.

    Differentiable in x and size, twice; "max" and the norm of "mlerp" share among ties. Sums are in
    float32 (float64 for float64) over ascending tokens: deterministic. Each input row is read once
    and each output row written once.
    """
    name = "fastops.merge_tokens"
    if (
        mode == "mean"
        and return_size is None
        and type(plan) is MergePlan
        and straight(x, size, plan.map, plan.offsets, plan.perm)
    ):
        try:
            return _mean_straight(x, plan, size)
        except _REFUSED:
            pass
    if _interop.any_foreign(x, size):
        return _foreign(name, x, plan, size, mode, return_size)
    several = isinstance(x, tuple | list) and not isinstance(x, MergePlan)
    xs = list(x) if several else [x]
    if not 1 <= len(xs) <= _MAX_TENSORS:
        raise ValueError(f"{name}: expected 1 to {_MAX_TENSORS} tensors, got {len(xs)}")
    for t in xs:
        check.is_tensor(name, "x", t)
        _check_plan(name, plan, t)
    xs = [_check_rows(name, "x", t, plan, plan.num_tokens, "tokens") for t in xs]
    code = _mode(name, mode)
    if return_size is None:
        return_size = size is not None
    check.is_bool(name, "return_size", return_size)
    column = False
    if size is not None:
        check.is_tensor(name, "size", size)
        check.is_floating(name, "size", size)
        check.same_device(name, "size", size, xs[0])
        shape = tuple(plan.map.shape)
        column = size.ndim == 3
        if tuple(size.shape) not in (shape, (*shape, 1)):
            raise ValueError(
                f"{name}: expected size of shape {shape} or {(*shape, 1)}, got {tuple(size.shape)}"
            )
        size = size.reshape(shape).to(accumulation_dtype(*xs)).contiguous()
    _load.require(name, xs[0].device)
    ys, merged, log_merged = _merge(xs, plan.map, plan.offsets, plan.perm, size, code)
    y = tuple(ys) if several else ys[0]
    if not return_size:
        return y
    return y, merged.unsqueeze(-1) if column else merged, log_merged


def _mean_straight(x: Tensor, plan: MergePlan, size: Tensor | None) -> Any:
    column = size is not None and size.ndim == 3
    own = size.squeeze(-1) if column else size
    with torch._C._AutoDispatchBelowAutograd():
        (y,), merged, log_merged = _straight_merge([x], plan.map, plan.offsets, plan.perm, own, 0)
    if size is None:
        return y
    return y, merged.unsqueeze(-1) if column else merged, log_merged


def _foreign(name, x, plan, size, mode, return_size):
    """The same on arrays; the answer in the kind of x (of its first tensor)."""
    first = x[0] if isinstance(x, tuple | list) else x
    answer = _interop._answer(name, first) if _interop.is_foreign(first) else lambda t: t
    convert = _interop._to_tensor
    several = isinstance(x, tuple | list)
    x = tuple(convert(name, "x", t) for t in x) if several else convert(name, "x", x)
    size = convert(name, "size", size)
    result = merge_tokens(x, plan, size=size, mode=mode, return_size=return_size)

    def back(value):
        return tuple(map(back, value)) if isinstance(value, tuple) else answer(value)

    return back(result)


def unmerge_tokens(y: Any, plan: MergePlan, residual: Any = None) -> Any:
    """Every token's row, put back where the token was: ``out[n] = y[map[n]] + residual[n]``.

    Args:
        y: [B, M, C] or [B, H, M, C], any floating dtype and strides; one sample serves all.
        plan: The :class:`MergePlan` that made the M rows.
        residual: Optional, of the result's shape and y's dtype: added on the way.

    Returns:
        [B, N, C] or [B, H, N, C] of y's dtype; tokens that went to no row are 0 (plus residual).

    Raises:
        TypeError, ValueError: As :func:`merge_tokens`.

    Differentiable in y and residual to any order. O(N C).
    """
    name = "fastops.unmerge_tokens"
    if _interop.any_foreign(y, residual):
        answer = _interop._answer(name, y) if _interop.is_foreign(y) else lambda t: t
        y, residual = (
            _interop._to_tensor(name, a, v) for a, v in (("y", y), ("residual", residual))
        )
        return answer(unmerge_tokens(y, plan, residual))
    check.is_tensor(name, "y", y)
    _check_plan(name, plan, y)
    y = _check_rows(name, "y", y, plan, plan.num_out, "rows")
    if residual is not None:
        check.is_tensor(name, "residual", residual)
        check.is_dtype(name, "residual", residual, y.dtype)
        check.same_device(name, "residual", residual, y)
        shape = (*y.shape[:-2], plan.num_tokens, y.shape[-1])
        if tuple(residual.shape) != shape:
            raise ValueError(
                f"{name}: expected residual of shape {shape}, got {tuple(residual.shape)}"
            )
    _load.require(name, y.device)
    return _unmerge(y, plan.map, plan.offsets, plan.perm, residual)
