"""`python mutant_workload.py LIBRARY`: for each line `NUMBER FAMILY...` on stdin, runs the ops of
those families in an emulated library from which synchronisation NUMBER is left out (-1: none), and
prints the first report as a line of JSON; "" where there is none."""

from __future__ import annotations

import ctypes
import json
import os
import sys

import torch

torch.set_num_threads(1)
torch.ops.load_library(sys.argv[1])
lib = ctypes.CDLL(sys.argv[1])
lib.simt_configure.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_ulonglong]
ops = torch.ops.fastops


def softmax() -> None:
    """Every kernel, with more rows than persistent blocks, more chunks than one, uneven ends."""
    for shape, dim in [
        ((9, 40), 1),
        ((3, 1501), 1),
        ((17, 9003), 1),  # a cluster of one block, several rows each
        ((9, 36005), 1),  # cluster
        ((1, 33001), 1),  # split
        ((70, 64), 0),  # column
        ((70, 7), 0),  # strided
    ]:
        x = torch.randn(shape)
        y = ops.softmax(x, [dim])
        ops.softmax_backward(x, y, [dim])
    os.environ["FASTOPS_SM90"] = "0"
    x = torch.randn(17, 9003)  # stream: several rows a block
    ops.softmax_backward(x, ops.softmax(x, [1]), [1])
    os.environ["FASTOPS_SM90"] = "1"
    lib.simt_set_device(1, 9, 0)
    x = torch.randn(243, 509)  # ring: slots filled again, rows that share 16 bytes
    ops.softmax_backward(x, ops.softmax(x, [1]), [1])
    lib.simt_set_device(4, 9, 0)
    for n, k in [(40, 7), (700, 90)]:  # a warp, and several
        x = torch.randint(9, (2, n)).float()
        y = ops.entmax(x, [1])
        ops.entmax_backward(y, y, [1])
        values, indices, lse = ops.softmax_topk(x, k)
        ops.softmax_topk_backward(values, indices, x, lse)


def nm() -> None:
    """Products with 2:4 weights: more tiles than the ring has stages, more splits than one; on
    wgmma, blocks alone and in clusters, sums that pass through shared memory twice."""
    stored, stored_transposed, sparse_tiles = 0, 4, 5
    for dtype, features in ((torch.float32, 72), (torch.float16, 456), (torch.float16, 1032)):
        out = 70
        values = torch.randn(out, features // 2).to(dtype)
        indices = torch.full((out, features // 4 * 4 // 8), 0x44, dtype=torch.uint8)
        weight = (None, out, features, 2, 4)
        for rows in (3, 70, 140):
            x, grad = torch.randn(rows, features).to(dtype), torch.randn(rows, out).to(dtype)
            if dtype == torch.float32:
                ops._nm_matmul(x, values, indices, *weight, stored, 0)
                ops._nm_matmul(grad, values, indices, *weight, stored_transposed, 0)
                ops.nm_linear_dw(grad, x, indices, 2, 4)
            else:
                structure, source = ops._nm_pack(indices, 2, 4, features, sparse_tiles)
                packed = ops._nm_gather(values, source)
                ops._nm_matmul(x, packed, structure, *weight, sparse_tiles, 0)
    gelu = 2
    for rows, out, features in ((300, 72, 456), (140, 200, 456)):
        x, values = torch.randn(rows, features).half(), torch.randn(out, features // 2).half()
        indices = torch.full((out, features // 8), 0x44, dtype=torch.uint8)
        structure, source = ops._nm_pack(indices, 2, 4, features, sparse_tiles)
        packed = ops._nm_gather(values, source)
        weight = (None, out, features, 2, 4)
        ops._nm_matmul(x, packed, structure, *weight, sparse_tiles, gelu)


def merge() -> None:
    """Less and more tokens than a block has threads, more channels than a tile, ties, every order
    of rows, nowhere to merge to."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for shape in ((1, 300, 40), (3, 140, 136)):
            ops.token_match(torch.randn(shape).to(dtype))
    few = torch.arange(5, dtype=torch.int32)[None]
    ops.token_match(torch.randn(1, 5, 8), few, num_src=5, num_dst=0)
    for sources, destinations, tokens in [(300, 250, 600), (200, 40, 260)]:
        part = {
            "tokens": torch.randperm(tokens).to(torch.int32)[None],
            "num_src": sources,
            "num_dst": destinations,
        }
        scores = torch.randint(5, (1, sources)).float()
        matches = torch.randint(destinations, (1, sources), dtype=torch.int32)
        for order, r in [(0, 100), (0, sources), (1, 100), (2, sources)]:
            for class_token in (False, True):
                plan = ops.token_plan(
                    scores, matches, tokens, r, tokens - r, **part,
                    class_token=class_token, order=order,
                )  # fmt: skip
        ops.plan_compose(plan[0], None, tokens)
    ops.token_select(torch.randint(9, (1, 300)).float(), 120, 5)


def full_lists(
    rows: int, columns: int, block: int, listed: int = 1, partial: int = 0
) -> list[torch.Tensor]:
    """A mask of every block, or none: lists by query, a pattern of bits for partial blocks, lists
    by key."""
    lists = []
    for r, c in ((rows, columns), (columns, rows)):
        offsets = torch.arange(r + 1) * c * listed
        indices = torch.arange(c, dtype=torch.int32).repeat(r)
        lists.append([offsets, indices, offsets * partial, torch.zeros_like(indices)])
    bits = torch.randint(-(2**31), 2**31, (1, block * block // 32), dtype=torch.int32)
    return [*lists[0], bits, *lists[1]]


def one_list(rows: int, row: int, indices: torch.Tensor, elements: int) -> list[torch.Tensor]:
    """A mask by query of which one row lists anything: offsets may be any."""
    offsets = torch.zeros(rows + 1, dtype=torch.int64)
    offsets[row + 1] = len(indices)
    bits = torch.zeros((1, elements // 32), dtype=torch.int32)
    return [offsets, indices, 0 * offsets, torch.zeros(0, dtype=torch.int32), bits]


def attention() -> None:
    """Every kernel with more tiles than it holds, warps that share a list, several heads of one
    group, channels to fill, empty lists, with and without sinks and a bias. Hopper's first."""
    q, k, v = (torch.randn(1, 1, length, 64).half() for length in (70, 800, 800))
    indices = torch.arange(25, dtype=torch.int32)
    bits = torch.randint(-(2**31), 2**31, (1, 128), dtype=torch.int32)
    mask = [torch.tensor([0, 25]), indices, torch.tensor([0, 9]), torch.zeros_like(indices), bits]
    ops.block_sparse_attention(q, k, v, mask, [128, 32, 1, 1], 0.1, None, None)
    # Of more rows than a warp numbers one in pieces.
    rows, listed = 40, 12
    mask = one_list(rows, rows - 2, torch.arange(listed, dtype=torch.int32), 64 * 128)
    q, k = torch.randn(1, 1, 64 * rows, 64).half(), torch.randn(1, 1, 128 * listed, 64).half()
    lib.simt_set_device(1, 9, 0)
    ops.block_sparse_attention(q, k, k, mask, [64, 128, 1, 1], 0.1, None, None)
    lib.simt_set_device(4, 9, 0)
    # Each part of its backward: more tiles than it holds, of two heads by key.
    for queries, keys, wanted in ((70, 330, [1, 0, 0, 0, 0]), (330, 70, [0, 1, 1, 0, 1])):
        q, grad = (torch.randn(1, 2, queries, 64).half() for _ in range(2))
        k, v = (torch.randn(1, 1, keys, 64).half() for _ in range(2))
        mask = full_lists(-(-queries // 64), -(-keys // 64), 64, partial=1)
        rest = [64, 64, 1, 1], 0.1, None, torch.randn(1, 2, keys)
        out, lse = ops.block_sparse_attention(q, k, v, mask[:5], *rest)
        ops.block_sparse_attention_backward(
            grad, None, q, k, v, out, lse, mask, *rest, [bool(w) for w in wanted]
        )
    os.environ["FASTOPS_SM90"] = "0"
    for channels, block in [(64, 128), (72, 16), (33, 32)]:
        q, grad = (torch.randn(1, 2, 70, channels).half() for _ in range(2))
        k, v = (torch.randn(1, 1, 300, channels).half() for _ in range(2))
        for listed, partial in ((1, 1), (1, 0), (0, 0)):
            mask = full_lists(-(-70 // block), -(-300 // block), block, listed, partial)
            shape = [block, block, 1, 1]
            sinks, bias = (torch.randn(2), torch.randn(1, 2, 300)) if partial else (None, None)
            out, lse = ops.block_sparse_attention(q, k, v, mask[:5], shape, 0.1, sinks, bias)
            wanted = [True] * 3 + [bool(partial)] * 2
            ops.block_sparse_attention_backward(
                grad, None, q, k, v, out, lse, mask, shape, 0.1, sinks, bias, wanted
            )
    # More rows than a sort takes at a time, of which one takes a second pass.
    rows = 600
    mask = one_list(rows, 4, torch.full((260,), -1, dtype=torch.int32), 16 * 16)
    q, k = torch.randn(1, 1, 16 * rows, 8).half(), torch.randn(1, 1, 16, 8).half()
    ops.block_sparse_attention(q, k, k, mask, [16, 16, 1, 1], 0.1, None, None)


FAMILIES = {"softmax": softmax, "nm": nm, "merge": merge, "attention": attention}


def first_report(families: list[str]) -> str:
    for order, early in [(0, 0), (1, 1), (2, 0)]:
        lib.simt_configure(order, early, 11)
        for family in families:
            torch.manual_seed(0)
            os.environ["FASTOPS_SM90"] = "1"
            try:
                FAMILIES[family]()
            except RuntimeError as error:
                return str(error)
    return ""


for line in sys.stdin:
    number, *families = line.split()
    lib.simt_leave_out(int(number))
    print(json.dumps(first_report(families)), flush=True)
