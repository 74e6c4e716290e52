"""Which shapes, dtypes and thread counts each suite measures, at each density.

Every tensor is about `Selection.tensor_bytes` large (64 MB on a CPU), whatever its shape, so that
times compare across shapes; suites `cache` and `overhead` are small on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..core.case import DTYPES, Case
from ..core.select import Density, Selection

SUITES = {
    "sweep": "rows of 64 to 16M elements",
    "dims": "reductions over a dim that is not the last",
    "vit": "attention rows of ViT-B/16 and ViT-L/16",
    "llm": "vocabularies of 32000, 128256 and 151936; decoding; causal and padded attention",
    "face": "face recognition: one and two million classes",
    "cache": "tensors of 64 KB to 4 MB, warm in cache",
    "overhead": "what a call costs when there is nothing to do",
}

POWERS = tuple(1 << k for k in range(6, 25))
STANDARD = (64, 256, 1 << 10, 1 << 12, 1 << 15, 1 << 18, 1 << 20, 1 << 24)
# On a GPU, whose bars are about rows of 256 and more, forward and backward.
ON_CUDA = (64, 256, 512, 1 << 10, 1 << 12, 1 << 15, 1 << 18, 1 << 20, 1 << 24)
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
        yield Case(op, suite, dtype, tuple(shape), threads=threads, device=selection.device, **more)


def _elements(selection: Selection, dtype: str) -> int:
    return selection.tensor_bytes // DTYPES[dtype].itemsize


def _rows(selection: Selection, dtype: str, n: int) -> tuple[int, int]:
    return max(1, _elements(selection, dtype) // n), n


def _sweep(s: Selection) -> Iterator[Case]:
    few = STANDARD if s.density == Density.overview else (256, 1 << 12, 1 << 20)
    sizes = s.pick(few, ON_CUDA if s.device == "cuda" else STANDARD, POWERS)
    for dtype in s.dtypes:
        for n in sizes:
            if n <= _elements(s, dtype):
                yield from _at(s, "softmax", "sweep", dtype, _rows(s, dtype, n))


def _second_ops(s: Selection) -> Iterator[Case]:
    for op, (wide, narrow) in SECOND.items():
        for dtype in s.dtypes:
            standard = wide if dtype == s.dtypes[0] else narrow if dtype == "bf16" else ()
            if s.device == "cuda" and op == "softmax_backward" and dtype != "fp16":
                standard = ON_CUDA
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
            s,
            "softmax",
            "overhead",
            s.dtypes[0],
            (1, 64),
            variant=f"({variant})",
            warm=True,
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
            if s.density < Density.standard and model != "ViT-B/16":
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
                s,
                "softmax",
                "llm",
                dtype,
                (rows, VOCABULARIES["Llama 3"]),
                variant="decode",
                warm=True,
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
