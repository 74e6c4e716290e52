"""The softmax family: what is measured, against what, and the bars it must reach.

Every tensor is about `Selection.tensor_bytes` large (64 MB on a CPU), whatever its shape, so that
times compare across shapes; suites `cache` and `overhead` are small on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch

import fastops

from .core.bars import Bar, error_ratio, extra_us, of_ceiling, speedup, times_copy
from .core.case import DTYPES, OURS, PEER, Accuracy, Case, Result, Workload
from .core.ceilings import copier
from .core.env import cache_bytes
from .core.pool import Pool
from .core.select import Density, Selection
from .core.timing import Call, Effort, measure
from .peers import compiled, triton_softmax

SUITES = {
    "sweep": "rows of 64 to 16M elements",
    "dims": "reductions over a dim that is not the last",
    "vit": "attention rows of ViT-B/16 and ViT-L/16",
    "llm": "vocabularies of 32000, 128256 and 151936; decoding; causal and padded attention",
    "face": "face recognition: one and two million classes",
    "cache": "tensors of 64 KB to 4 MB, warm in cache",
    "overhead": "what a call costs when there is nothing to do",
}
MiB = 1 << 20
ops, aten = torch.ops.fastops, torch.ops.aten


# ---- the ops ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """One buffer set of a case. For backward ops `x` is the saved output."""

    x: torch.Tensor
    dim: int
    out: torch.Tensor
    peer_out: torch.Tensor
    grad: torch.Tensor | None = None
    mask: torch.Tensor | None = None  # broadcasts to x; True takes part
    excluded: torch.Tensor | None = None  # its inverse, made beforehand: torch's way needs it
    scratch: torch.Tensor | None = None
    ours: dict = field(default_factory=dict)  # the mask as our op takes it


@dataclass(frozen=True)
class Op:
    """`formula` is plain PyTorch on (x, grad, mask) over the last dim: reference and compile peer."""

    ours: Callable[[Inputs], Call]
    torch: Callable[[Inputs], dict[str, Call]]  # the ways to do it; the fastest becomes the peer
    formula: Callable[..., torch.Tensor]
    reads: int = 1
    writes: int = 1
    kind: str = "forward"


def masked_ways(i: Inputs) -> dict[str, Call]:
    """masked_fill + softmax as people write it, with every buffer made beforehand, and its rivals."""
    low = torch.tensor(-torch.inf, dtype=i.x.dtype, device=i.x.device)

    def fill_then_softmax() -> None:
        aten.masked_fill.Scalar_out(i.x, i.excluded, -torch.inf, out=i.scratch)
        aten._softmax.out(i.scratch, i.dim, False, out=i.peer_out)

    def where_then_softmax() -> None:
        torch.where(i.mask, i.x, low, out=i.scratch)
        aten._softmax.out(i.scratch, i.dim, False, out=i.peer_out)

    return {"masked_fill + softmax": fill_then_softmax, "where + softmax": where_then_softmax}


OPS = {
    "softmax": Op(
        ours=lambda i: partial(ops.softmax.out, i.x, [i.dim], out=i.out),
        torch=lambda i: {"_softmax.out": partial(aten._softmax.out, i.x, i.dim, False, out=i.peer_out)},
        formula=lambda x, grad, mask: torch.softmax(x, -1),
    ),
    "log_softmax": Op(
        ours=lambda i: partial(ops.log_softmax.out, i.x, [i.dim], out=i.out),
        torch=lambda i: {
            "_log_softmax.out": partial(aten._log_softmax.out, i.x, i.dim, False, out=i.peer_out)
        },
        formula=lambda x, grad, mask: torch.log_softmax(x, -1),
    ),
    "logsumexp": Op(
        ours=lambda i: partial(ops.logsumexp.out, i.x, [i.dim], out=i.out),
        torch=lambda i: {
            "logsumexp.out": partial(aten.logsumexp.out, i.x, [i.dim], False, out=i.peer_out)
        },
        formula=lambda x, grad, mask: torch.logsumexp(x, -1),
        writes=0,
        kind="reduction",
    ),
    "softmax_backward": Op(
        ours=lambda i: partial(ops.softmax_backward.out, i.grad, i.x, [i.dim], out=i.out),
        torch=lambda i: {
            "_softmax_backward_data.out": partial(
                aten._softmax_backward_data.out,
                i.grad, i.x, i.dim, i.x.dtype, grad_input=i.peer_out,
            )
        },
        formula=lambda y, grad, mask: y * (grad - (y * grad).sum(-1, keepdim=True)),
        reads=2,
        kind="backward",
    ),
    "log_softmax_backward": Op(
        ours=lambda i: partial(ops.log_softmax_backward.out, i.grad, i.x, [i.dim], out=i.out),
        torch=lambda i: {
            "_log_softmax_backward_data.out": partial(
                aten._log_softmax_backward_data.out,
                i.grad, i.x, i.dim, i.x.dtype, out=i.peer_out,
            )
        },
        formula=lambda y, grad, mask: grad - y.exp() * grad.sum(-1, keepdim=True),
        reads=2,
        kind="backward",
    ),
    "masked_softmax": Op(
        ours=lambda i: partial(ops.softmax.out, i.x, [i.dim], **i.ours, out=i.out),
        torch=masked_ways,
        formula=lambda x, grad, mask: torch.softmax(x.masked_fill(~mask, -torch.inf), -1),
        kind="masked",
    ),
}


# ---- the cases --------------------------------------------------------------------------------

POWERS = tuple(1 << k for k in range(6, 25))
STANDARD = (64, 256, 1 << 10, 1 << 12, 1 << 15, 1 << 18, 1 << 20, 1 << 24)
# The other ops, at fewer sizes in a standard run: (fp32, 16-bit dtypes).
SECOND = {
    "softmax_backward": ((64, 1 << 10, 1 << 12, 1 << 15, 1 << 20), (1 << 10, 1 << 15)),
    "log_softmax": ((64, 1 << 10, 1 << 15, 1 << 20), (1 << 10,)),
    "masked_softmax": ((64, 1 << 10, 1 << 15, 1 << 20), (1 << 10,)),
    "log_softmax_backward": ((1 << 10, 1 << 15), ()),
    "logsumexp": ((1 << 10, 1 << 20), ()),
}
VOCABULARIES = {"Llama 2": 32000, "Llama 3": 128256, "Qwen2": 151936}
CLASSES = {"1M classes": 1_000_000, "WebFace42M": 2_059_906}


def cases(selection: Selection) -> Iterator[Case]:
    """Every case of the selection, the most telling ones first."""
    for make in (_sweep, _overhead, _cache, _dims, _second_ops, _vit, _llm, _face):
        wanted = [case for case in make(selection) if selection.wants(case.op, case.suite)]
        ops_in_order = list(dict.fromkeys(case.op for case in wanted))
        yield from sorted(wanted, key=lambda case: ops_in_order.index(case.op))


def _at(selection: Selection, op: str, suite: str, dtype: str, shape, **more) -> Iterator[Case]:
    """The case on each thread count."""
    for threads in more.pop("threads", selection.threads):
        yield Case(
            op, suite, dtype, tuple(shape), threads=threads, device=selection.device, **more
        )


def _elements(selection: Selection, dtype: str) -> int:
    return selection.tensor_bytes // DTYPES[dtype].itemsize


def _rows(selection: Selection, dtype: str, n: int) -> tuple[int, int]:
    return max(1, _elements(selection, dtype) // n), n


def _sweep(s: Selection) -> Iterator[Case]:
    sizes = s.pick((256, 1 << 12, 1 << 20), STANDARD, POWERS)
    for dtype in s.dtypes:
        for n in sizes:
            if n <= _elements(s, dtype):
                yield from _at(s, "softmax", "sweep", dtype, _rows(s, dtype, n))


def _second_ops(s: Selection) -> Iterator[Case]:
    for op, (wide, narrow) in SECOND.items():
        for dtype in s.dtypes:
            standard = wide if dtype == s.dtypes[0] else narrow if dtype == "bf16" else ()
            for n in s.pick(standard[1:2], standard, POWERS):
                if n <= _elements(s, dtype):
                    threads = s.threads if s.density == Density.full else s.threads[:1]
                    more = {"variant": "mask"} if op == "masked_softmax" else {}
                    yield from _at(
                        s, op, "sweep", dtype, _rows(s, dtype, n), threads=threads, **more
                    )


def _overhead(s: Selection) -> Iterator[Case]:
    for variant in ("x", "x, out="):
        yield from _at(
            s, "softmax", "overhead", s.dtypes[0], (1, 64), variant=f"({variant})", warm=True,
            threads=s.threads[:1],
        )


def _cache(s: Selection) -> Iterator[Case]:
    for dtype in s.pick(s.dtypes[:1], s.dtypes[:2], s.dtypes):
        for kib in s.pick((256,), (64, 256, 1024, 4096), (64, 128, 256, 512, 1024, 2048, 4096)):
            size = min(kib << 10, s.tensor_bytes) // DTYPES[dtype].itemsize
            for n in s.pick((1024,), (1024,), (64, 256, 1024, 4096, size)):
                yield from _at(
                    s, "softmax", "cache", dtype, (size // n, n), warm=True, variant=f"{kib} KB"
                )


def _dims(s: Selection) -> Iterator[Case]:
    for dtype in s.pick(s.dtypes[:1], s.dtypes[:2], s.dtypes):
        numel = _elements(s, dtype)
        shapes = {
            "": ((max(1, numel // (1024 * 256)), 1024, 256), 1),
            "columns": ((4096, max(1, numel // 4096)), 0),
            "ADE20K logits": ((max(1, numel // (150 * 80 * 80)), 150, 80, 80), 1),
            "inner 8": ((max(1, numel // (4096 * 8)), 4096, 8), 1),
        }
        for variant, (shape, dim) in list(shapes.items())[: s.pick((1,), (4,), (4,))[0]]:
            yield from _at(s, "softmax", "dims", dtype, shape, dim=dim, variant=variant)


def _vit(s: Selection) -> Iterator[Case]:
    models = {"ViT-B/16": (12, 197), "ViT-L/16": (16, 197), "ViT-L/16 384px": (16, 577)}
    for dtype in s.dtypes[:2] if s.density < Density.full else s.dtypes:
        for model, (heads, tokens) in models.items():
            batch = max(1, _elements(s, dtype) // (heads * tokens * tokens))
            shape = (batch, heads, tokens, tokens)
            if s.density == Density.quick and model != "ViT-B/16":
                continue
            yield from _at(s, "softmax", "vit", dtype, shape, variant=model)
            if s.density == Density.full:
                yield from _at(s, "softmax_backward", "vit", dtype, shape, variant=model)


def _llm(s: Selection) -> Iterator[Case]:
    for dtype in s.pick(s.dtypes[:1], s.dtypes[:2], s.dtypes):
        names = list(VOCABULARIES)
        for name in s.pick(names[1:2], names, names):
            shape = _rows(s, dtype, VOCABULARIES[name])
            yield from _at(s, "softmax", "llm", dtype, shape, variant=name)
            if s.density == Density.full or name == "Llama 3":
                yield from _at(s, "log_softmax", "llm", dtype, shape, variant=name)
        for rows in s.pick((), (1, 8), (1, 2, 8, 32)):
            yield from _at(
                s, "softmax", "llm", dtype, (rows, VOCABULARIES["Llama 3"]),
                variant="decode", warm=True,
            )
        tokens = 1024
        shape = (1, max(1, _elements(s, dtype) // tokens**2), tokens, tokens)
        for variant in s.pick((), ("causal", "lengths"), ("causal", "lengths", "padding mask")):
            yield from _at(s, "masked_softmax", "llm", dtype, shape, variant=variant)


def _face(s: Selection) -> Iterator[Case]:
    for name, classes in list(CLASSES.items())[: s.pick((0,), (2,), (2,))[0]]:
        for op in ("softmax", "log_softmax"):
            shape = _rows(s, s.dtypes[0], classes)
            yield from _at(s, op, "face", s.dtypes[0], shape, variant=name)


# ---- the work ---------------------------------------------------------------------------------


def prepare(case: Case, pool: Pool, peers: tuple[str, ...]) -> Workload:
    """Buffers and calls of a case; the torch peer is the fastest of torch's ways to do it."""
    op, dtype = OPS[case.op], DTYPES[case.dtype]
    moved = (op.reads + op.writes) * case.rows * case.n * dtype.itemsize
    # Enough sets to overflow the last-level cache twice, so that no call finds its data there.
    sets = 1 if case.warm else min(8, max(2, -(-2 * cache_bytes(case.device) // moved)))
    inputs = [_inputs(case, pool, i) for i in range(sets)]
    if case.suite == "overhead":
        return _overhead_workload(case, inputs[0])

    ways = [op.torch(i) for i in inputs]
    best, notes = _fastest(ways, case.device), {}
    if len(ways[0]) > 1:
        notes[PEER] = best
    calls: dict[str, list[Call]] = {
        OURS: [op.ours(i) for i in inputs],
        PEER: [way[best] for way in ways],
    }
    last = case.dim % len(case.shape) == len(case.shape) - 1
    if "copy" in peers and op.writes and op.reads == 1 and not case.warm:
        calls["copy"] = [_copy(case, i) for i in inputs]
    if "compile" in peers:
        calls["compile"] = [compiled.softmax_like(op.formula, i) for i in inputs]
    if "triton" in peers and case.op == "softmax":
        missing = triton_softmax.why_missing(case.device, case.n, last)
        if missing:
            notes["triton"] = missing
        else:
            calls["triton"] = [partial(triton_softmax.softmax, i.x, i.out) for i in inputs]
    return Workload(
        calls, _traffic(op, inputs[0]), partial(_accuracy, case, op, inputs[0], calls), notes
    )


def _inputs(case: Case, pool: Pool, index: int) -> Inputs:
    op, dtype = OPS[case.op], DTYPES[case.dtype]
    x = pool.scores(case.shape, dtype, index)
    out = peer_out = pool.empty(case.shape, dtype, index)
    if op.kind == "reduction":
        rows = [size for d, size in enumerate(case.shape) if d != case.dim % len(case.shape)]
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        out = pool.empty(rows, accumulator, index, "lse")
        peer_out = pool.empty(rows, dtype, index, "peer lse")
    grad = None
    if op.kind == "backward":
        grad, saved = x, pool.empty(case.shape, dtype, index, "saved")
        forward = aten._log_softmax if case.op.startswith("log") else aten._softmax
        # The saved output belongs to other scores than the gradient: reversed along the rows.
        x = forward.out(grad.flip(0), case.dim, False, out=saved)
    if op.kind != "masked":
        return Inputs(x, case.dim, out, peer_out, grad)
    mask, ours = _mask(case, x.device)
    scratch = pool.empty(case.shape, dtype, index, "scratch")
    return Inputs(x, case.dim, out, peer_out, None, mask, ~mask, scratch, ours)


def _mask(case: Case, device: torch.device) -> tuple[torch.Tensor, dict]:
    """The mask for torch, and the arguments by which our op is told the same."""
    generator = torch.Generator(device=device).manual_seed(1)
    n = case.n
    if case.variant == "causal":
        return torch.ones(n, n, dtype=torch.bool, device=device).tril(), {"causal": 1}
    if case.variant == "mask":
        mask = torch.rand(case.shape, generator=generator, device=device) < 0.75
        mask[..., 0] = True
        return mask, {"mask": mask}
    shape = (*case.shape[:-2], 1, 1)
    lengths = torch.randint(n // 2, n + 1, shape, generator=generator, device=device)
    mask = torch.arange(n, device=device) < lengths
    return mask, ({"lengths": lengths} if case.variant == "lengths" else {"mask": mask})


def _traffic(op: Op, i: Inputs) -> int:
    """Bytes that must move. Scores behind a causal edge or a length need not be read."""
    full = i.x.numel() * i.x.element_size()
    reads = float(op.reads)
    if "mask" in i.ours:
        reads += i.mask.numel() / full
    elif i.ours:
        reads *= i.mask.float().mean().item()
    small = i.out.numel() * i.out.element_size() if not op.writes else 0
    return int((reads + op.writes) * full) + small


def _fastest(ways: list[dict[str, Call]], device: str) -> str:
    if len(ways[0]) == 1:
        return next(iter(ways[0]))
    calls = {name: [way[name] for way in ways] for name in ways[0]}
    times = measure(calls, device, Effort(seconds=0, min_rounds=3), cold=True)
    return min(times, key=lambda name: times[name].median)


def _copy(case: Case, i: Inputs) -> Call:
    if case.device != "cpu":
        return lambda: i.out.copy_(i.x)
    copy, _ = copier()
    return lambda: copy(i.out, i.x, case.threads)


def _overhead_workload(case: Case, i: Inputs) -> Workload:
    """The public functions, as a user calls them; without out= both allocate."""
    if case.variant == "(x)":
        calls = {OURS: partial(fastops.softmax, i.x), PEER: partial(torch.softmax, i.x, -1)}
    else:
        calls = {
            OURS: partial(fastops.softmax, i.x, out=i.out),
            PEER: partial(aten._softmax.out, i.x, -1, False, out=i.out),
        }
    op = OPS["softmax"]
    checked = {OURS: [op.ours(i)], PEER: list(op.torch(i).values())}
    return Workload(
        {name: [call] for name, call in calls.items()},
        _traffic(op, i),
        partial(_accuracy, case, op, i, checked),
    )


# ---- errors -----------------------------------------------------------------------------------

CHECKED_ELEMENTS = 1 << 18


def _accuracy(case: Case, op: Op, i: Inputs, calls: dict[str, list[Call]]) -> Accuracy:
    """Errors over whole rows, spread evenly over the tensor from its first row to its last."""
    count = max(1, min(case.rows, CHECKED_ELEMENTS // case.n))
    picks = torch.linspace(0, case.rows - 1, count, dtype=torch.float64).round().long()
    row_shape = i.x.movedim(i.dim, -1).shape[:-1]
    index = torch.unravel_index(picks.to(i.x.device), row_shape)

    def sample(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        if tensor.dim() == len(row_shape) and op.kind == "reduction":
            return tensor[index].unsqueeze(-1)
        return tensor.expand(i.x.shape).movedim(i.dim, -1)[index]

    def error(name: str, out: torch.Tensor) -> float:
        calls[name][0]()
        off = (sample(out).double() - exact).abs()
        return (off.amax(-1) / exact.abs().amax(-1).clamp_min(1e-300)).max().item()

    x, grad = (t if t is None else t.double() for t in (sample(i.x), sample(i.grad)))
    exact = op.formula(x, grad, sample(i.mask))
    if op.kind == "reduction":
        exact = exact.unsqueeze(-1)
    rounding = torch.finfo(i.peer_out.dtype).eps / 2
    return Accuracy(error(OURS, i.out), error(PEER, i.peer_out), rounding)


# ---- the bars ---------------------------------------------------------------------------------


def _in(*suites: str, op: str = "softmax", dtypes: tuple[str, ...] = (), threads: int | None = None,
        least_n: int = 0, most_n: int = 1 << 62, device: str = "cpu") -> Callable[[Result], bool]:
    def where(result: Result) -> bool:
        case = result.case
        return (
            case.device == device
            and case.suite in suites
            and case.op == op
            and (not dtypes or case.dtype in dtypes)
            and threads in (None, case.threads)
            and least_n <= case.n <= most_n
        )

    return where


HALF = ("bf16", "fp16")
FP32 = ("fp32",)
ROW_16M = {"dtypes": FP32, "threads": 2, "least_n": 1 << 24}
K4, K32 = 1 << 12, 1 << 15

BARS = [
    Bar("fp32 softmax, N 64 to 16M, 1 thread", _in("sweep", dtypes=FP32, threads=1),
        speedup(), mean=2.1, each=1.6),
    Bar("fp32 softmax, 2 threads", _in("sweep", dtypes=FP32, threads=2), speedup(), mean=1.5),
    Bar("its time over a streaming copy's, N >= 1024, 2 threads",
        _in("sweep", dtypes=FP32, threads=2, least_n=1024), times_copy, each=1.3, at_most=True),
    Bar("bf16 and fp16 softmax", _in("sweep", dtypes=HALF), speedup(), mean=2.8, each=2.0),
    Bar("a dim that is not the last", _in("dims"), speedup(), each=2.0),
    Bar("one row of 16M, 2 threads", _in("sweep", **ROW_16M), speedup(), each=1.8),
    Bar("its error over torch's", _in("sweep", **ROW_16M), error_ratio, each=1.0, at_most=True),
    Bar("backward, every N", _in("sweep", op="softmax_backward", threads=1), speedup(), each=1.15),
    Bar("backward, 4K to 32K",
        _in("sweep", op="softmax_backward", threads=1, least_n=K4, most_n=K32), speedup(), each=1.4),
    Bar("log_softmax", _in("sweep", op="log_softmax", threads=1), speedup(), each=1.5),
    Bar("masked softmax, against masked_fill + softmax",
        _in("sweep", op="masked_softmax", threads=1), speedup(), each=3.0),
    Bar("tensors in cache, 64 KB to 4 MB", _in("cache"), speedup(), each=1.2),
    Bar("per-call overhead beyond torch's", _in("overhead"), extra_us, each=3.0, at_most=True,
        unit=" µs"),
]  # fmt: skip
for _op in ("softmax", "softmax_backward"):
    _cuda = {"op": _op, "device": "cuda", "dtypes": ("bf16", "fp32")}
    BARS += [
        Bar(f"CUDA {_op}, N >= 1024, share of copy bandwidth", _in("sweep", least_n=1024, **_cuda),
            of_ceiling, each=0.9),
        Bar(f"CUDA {_op}, N 256 to 1023, share of copy bandwidth",
            _in("sweep", least_n=256, most_n=1023, **_cuda), of_ceiling, each=0.8),
        *(Bar(f"CUDA {_op} against {peer}", _in("sweep", **_cuda), speedup(peer), each=1.0)
          for peer in (PEER, "compile", "triton")),
    ]  # fmt: skip
