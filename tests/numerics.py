"""How a kernel is judged: the ratio rule, and storage that notices a stray write.

Every family's tests use these; nothing here knows an op.
"""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# The CUDA kernels serve CPU tensors (docs/simt.md), some thousand times slower.
EMULATED = os.environ.get("FASTOPS_SIMT") == "1"
# They do on a GPU, to which the tensors are carried (tests/cuda/moved.py).
CARRIED = os.environ.get("FASTOPS_TESTS_ON") == "cuda"
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def accumulator(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype a kernel accumulates in: float64 as soon as one of `dtypes` is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def exact_dtype(*dtypes: torch.dtype) -> type:
    """The NumPy dtype references are computed in: wider than the accumulator."""
    return np.longdouble if torch.float64 in dtypes else np.float64


def exact(t: Tensor, dtype: type = np.float64) -> np.ndarray:
    """`t` as a NumPy array of a wide dtype; exact for every floating dtype."""
    return t.detach().cpu().double().numpy().astype(dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit: NaN equals the same NaN, and 0 is not -0."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.shape == b.shape and torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def assert_repeats(run: Callable[[], Iterable[Tensor]], times: int) -> None:
    """The same bits every time, on one to four threads."""
    first, threads = list(run()), torch.get_num_threads()
    try:
        for i in range(times):
            torch.set_num_threads(1 + i % 4)
            assert all(same_bits(a, b) for a, b in zip(run(), first, strict=True))
    finally:
        torch.set_num_threads(threads)


# ---- the ratio rule ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Error:
    """The worst error of any element, and of any row as a whole, relative to `size`."""

    element: float = 0.0
    row: float = 0.0

    def worse(self, other: "Error") -> "Error":
        return Error(max(self.element, other.element), max(self.row, other.row))


def smallest(dtype: torch.dtype) -> float:
    """Below this an absolute error means nothing: the smallest number of `dtype`, or the smallest
    normal number of the accumulator, under which a kernel may flush to zero."""
    info = torch.finfo(dtype)
    return max(info.smallest_normal * info.eps, torch.finfo(accumulator(dtype)).smallest_normal)


def _errors(values: Tensor, reference: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Absolute errors where both sides are finite, else 0."""
    values = exact(values, reference.dtype.type)
    with np.errstate(invalid="ignore"):
        errors = np.abs(values - reference)
    return np.where(np.isfinite(values) & np.isfinite(reference) & np.isfinite(size), errors, 0)


def measure(values: Tensor, reference: np.ndarray, size: np.ndarray) -> Error:
    """The error of `values` against `reference` in units of `size`, which tells what one rounding
    on the way to each element costs. The last axis is the row."""
    if reference.size == 0:
        return Error()
    errors = np.maximum(_errors(values, reference, size) - smallest(values.dtype), 0)
    size = np.where(np.isfinite(size) & (size > 0), size, 1)
    rows = errors.sum(-1) / size.sum(-1)
    return Error(float((errors / size).max()), float(rows.max()))


def assert_ratio(
    got: Tensor,
    reference: np.ndarray,
    peer: Tensor,
    *,
    size: np.ndarray | None = None,
    luck: Error | None = None,
) -> None:
    """The error of `got` is at most twice that of `peer`, plus one rounding of got's dtype.

    `peer` is the same computation in plain PyTorch. Both the worst element and the worst row count,
    each relative to `size` (default: the magnitude of the reference). `luck` is the error the peer
    makes on a larger sample: on few elements its own may be nothing by chance. Infinities and NaN
    must be where the reference, rounded to got's dtype, has them.
    """
    assert got.shape == reference.shape == peer.shape, (got.shape, reference.shape, peer.shape)
    if got.numel() == 0:
        return
    size = np.abs(reference) if size is None else size
    ideal = torch.from_numpy(reference.astype(np.float64)).to(got.dtype)
    values = got.detach().cpu()
    special = ~ideal.isfinite() | ~values.isfinite()
    wrong = special & ~((values == ideal) | (values.isnan() & ideal.isnan()))
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} elements have the wrong NaN or infinity; "
            f"at {at}: got {values[at]}, expected {ideal[at]}"
        )

    allowed = measure(peer, reference, size).worse(luck or Error())
    rounding = torch.finfo(got.dtype).eps / 2
    magnitude = np.where(np.isfinite(reference), np.abs(reference), 0)
    size = np.where(np.isfinite(size), size, 0)
    slack = rounding * magnitude + smallest(got.dtype)
    errors = _errors(got, reference, size)
    limit = 2 * allowed.element * size + slack
    if (errors > limit).any():
        at = np.unravel_index(np.argmax(errors - limit), errors.shape)
        raise AssertionError(
            f"{int((errors > limit).sum())} of {errors.size} elements are too far off; at {at}: "
            f"got {got[at].item()!r}, expected {float(reference[at])!r}, "
            f"torch has {peer[at].item()!r}; error {float(errors[at]):.3e}, "
            f"allowed {float(limit[at]):.3e}"
        )
    errors, limit = errors.sum(-1), 2 * allowed.row * size.sum(-1) + slack.sum(-1)
    if (errors > limit).any():
        at = np.unravel_index(np.argmax(errors - limit), errors.shape)
        raise AssertionError(
            f"row {at} is too far off as a whole: sum of errors {float(errors[at]):.3e}, "
            f"allowed {float(limit[at]):.3e}"
        )


# ---- layouts and red zones ----------------------------------------------------------------------

# How a tensor may lie in memory; each keeps the logical shape. "expanded" ones repeat one slice.
DENSE_LAYOUTS = ("contiguous", "transposed", "reversed", "first dim innermost")
LAYOUTS = (*DENSE_LAYOUTS, "odd start", "padded rows", "stepped", "apart")
EXPANDED_LAYOUTS = ("expanded first", "expanded last", "expanded all")


def strides_of(shape: tuple[int, ...], layout: str) -> tuple[list[int], int]:
    """(strides, offset) of `layout` for `shape`, in elements."""
    rank = len(shape)
    order = list(range(rank))  # outermost first
    pitch, gap, offset = 0, 1, 0
    match layout:
        case "contiguous" | "expanded first" | "expanded last" | "expanded all":
            pass
        case "transposed":
            order[-2:] = order[-2:][::-1]
        case "reversed":
            order.reverse()
        case "first dim innermost":
            order = order[1:] + order[:1]
        case "odd start":
            offset = 3
        case "padded rows":  # row starts at every alignment
            pitch, offset = 3, 1
        case "stepped":  # no two elements adjacent
            gap, offset = 2, 1
        case "apart":  # no two dims merge, and none has stride 1
            gap, pitch, offset = 3, 5, 2
            order.reverse()
        case _:
            raise ValueError(layout)
    strides, step = [0] * rank, gap
    for d in reversed(order):
        strides[d] = step
        step = step * max(shape[d], 1) + pitch
    if layout == "expanded all":
        strides = [0] * rank
    elif layout == "expanded first" and rank:
        strides[0] = 0
    elif layout == "expanded last" and rank:
        strides[-1] = 0
    return strides, offset


class Guarded:
    """A tensor of a given layout inside storage filled with `fill` (random bits by default).

    Random bits around an output show a stray write; NaN around an input shows a stray read.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        layout: str = "contiguous",
        *,
        device: str = "cpu",
        fill: float | None = None,
        start: int | None = None,
    ):
        strides, offset = strides_of(shape, layout)
        offset = 64 + (offset if start is None else start)
        span = (
            sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if 0 not in shape else 0
        )
        generator = torch.Generator().manual_seed(span + offset)
        width = torch.empty(0, dtype=dtype).element_size()
        count = offset + span + 1 + 64
        if fill is None:
            high = 2 if dtype == torch.bool else 256
            bits = torch.randint(high, (count * width,), generator=generator, dtype=torch.uint8)
            storage = bits.view(dtype)
        else:
            storage = torch.full((count,), fill, dtype=dtype)
        self.storage = storage.to(device)
        self.tensor = torch.as_strided(self.storage, shape, strides, offset)
        self.inside = torch.zeros(count, dtype=torch.bool, device=device)
        self.inside.as_strided(shape, strides, offset).fill_(True)
        self.before = self.storage.clone()

    def assert_intact(self) -> None:
        """Nothing but the tensor's own elements has changed."""
        outside = ~self.inside
        assert same_bits(self.storage[outside], self.before[outside]), "wrote outside the output"

    def assert_untouched(self) -> None:
        """Nothing at all has changed."""
        assert same_bits(self.storage, self.before), "wrote to an input"


def lay_out(values: Tensor, layout: str, *, start: int | None = None) -> Tensor:
    """The values of a tensor in another layout, NaN (or noise) in the gaps; the first slice
    repeated where the layout is expanded."""
    fill = math.nan if values.is_floating_point() else None
    guarded = Guarded(
        tuple(values.shape),
        values.dtype,
        layout,
        device=values.device.type,
        fill=fill,
        start=start,
    )
    if values.numel():
        view = guarded.tensor
        for d in range(values.ndim):
            if view.stride(d) == 0:
                view, values = view.narrow(d, 0, 1), values.narrow(d, 0, 1)
        view.copy_(values)
    return guarded.tensor
