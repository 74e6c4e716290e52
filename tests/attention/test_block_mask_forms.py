"""Every way to make a BlockMask, against the mask of elements that it means."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

import fastops
from fastops import BlockMask
from fastops.attention import _lists, tile_order

BLOCKS = [(16, 16), (64, 32), (32, 128), (128, 128)]
LENGTHS = [(1, 1), (17, 17), (203, 203), (64, 256), (100, 299), (256, 90)]


def positions(lengths: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    q = torch.arange(lengths[0])[:, None] + lengths[1] - lengths[0]
    return q, torch.arange(lengths[1])


def same(made: BlockMask, expected: torch.Tensor, whole: bool = True) -> None:
    """The elements; the blocks that these ask for, as `whole` as can be; nothing out of bounds."""
    expected = expected.expand(made.shape)
    assert made.to_dense().equal(expected)
    least = BlockMask.from_element_mask(expected, made.block_size)
    if whole:
        assert made.to_block_map()[least.to_block_map() == 2].eq(2).all()
    assert (made.to_block_map() > 0).equal(least.to_block_map() > 0)
    BlockMask(
        *made.lists, made.bits, block_size=made.block_size, seq_lens=made.seq_lens,
        batch=made.batch, heads=made.heads,
    )  # fmt: skip
    transposed = made.transposed()
    assert transposed.offsets[-1] == made.offsets[-1]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("lengths", LENGTHS)
class TestPositions:
    def test_causal(self, lengths, block) -> None:
        q, kv = positions(lengths)
        same(BlockMask.causal(lengths, block), kv <= q)
        for offset in (0, 7, 300, -5):
            first = torch.arange(lengths[0])[:, None] + offset
            same(BlockMask.causal(lengths, block, offset=offset), kv <= first)

    @pytest.mark.parametrize(
        ("left", "right", "sinks"), [(0, 0, 0), (40, 0, 0), (100, 7, 20), (70, 0, 33), (5, 90, 1)]
    )
    def test_sliding_window(self, lengths, block, left, right, sinks) -> None:
        q, kv = positions(lengths)
        window = (kv >= q - left) & (kv <= q + right)
        made = BlockMask.sliding_window(lengths, left, right, sinks, block)
        same(made, window | ((kv < sinks) & (kv <= q + right)))

    @pytest.mark.parametrize("prefix", [0, 50, 1000])
    def test_prefix_lm(self, lengths, block, prefix) -> None:
        q, kv = positions(lengths)
        same(BlockMask.prefix_lm(lengths, prefix, block), (kv <= q) | (kv < prefix))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("cu_seqlens", "total"),
    [([0], 0), ([0], 40), ([0, 203], 203), ([0, 64, 64, 70, 128, 300], 300), ([0, 5, 150], 290)],
)
def test_documents(block, causal, cu_seqlens, total) -> None:
    document = torch.full((total,), -1)
    for d, (begin, end) in enumerate(itertools.pairwise(cu_seqlens)):
        document[begin:end] = d
    q, kv = positions((total, total))
    keep = (document[:, None] == document) & (document >= 0) & (kv <= q if causal else True)
    for given in (cu_seqlens, torch.tensor(cu_seqlens, dtype=torch.int32)):
        same(BlockMask.documents(given, causal, block, total), keep)


MADE = {
    "causal": lambda device: BlockMask.causal((200, 300), 32, device=device),
    "sliding_window": lambda device: BlockMask.sliding_window(300, 70, 5, 20, 32, device=device),
    "documents": lambda device: BlockMask.documents([0, 40, 200], True, 32, device=device),
    "bigbird": lambda device: BlockMask.bigbird(300, 16, device=device),
    "tile_2d": lambda device: BlockMask.tile_2d((16, 16), (4, 8), (3, 1), device=device),
    "vlm": lambda device: BlockMask.vlm(torch.arange(200, device=device) // 50 - 1, ["hybrid"]),
    "from_fn": lambda device: BlockMask.from_fn(strange, 90, 32, heads=2, device=device),
    "from_dense": lambda device: BlockMask.from_dense(
        torch.ones(3, 4, dtype=torch.bool, device=device).tril(), 16
    ),
    "from_element_mask": lambda device: BlockMask.from_element_mask(
        torch.ones(2, 90, 70, dtype=torch.bool, device=device).tril(3), 16
    ),
}


@pytest.mark.parametrize("how", MADE)
def test_device(how, device) -> None:
    made, here = MADE[how](device), MADE[how]("cpu")
    assert {t.device.type for t in (*made.lists, made.bits, *made.transposed())} == {device}
    assert made.to_dense().cpu().equal(here.to_dense())
    for lists, wanted in ((made.lists, here.lists), (made.transposed(), here.transposed())):
        used = int(wanted.offsets[-1])
        assert lists.offsets.cpu().equal(wanted.offsets)
        assert lists.indices[:used].cpu().equal(wanted.indices[:used])
        assert lists.partial_offsets.cpu().equal(wanted.partial_offsets)
    assert made.to("cpu").to_dense().equal(here.to_dense())


def test_equal_patterns_are_worked_out_once() -> None:
    assert BlockMask.causal(16384, 128).bits.shape[0] == 1
    assert BlockMask.sliding_window(16384, 1024, 0, 0, 128).bits.shape[0] == 2
    made = BlockMask.documents(torch.arange(0, 16385, 4096) - torch.tensor([0, 1, 1, 1, 0]))
    assert made.patterns.numel() > 200
    assert made.bits.shape[0] < 40


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("length", [1, 203, 512])
def test_bigbird(block, length) -> None:
    made = BlockMask.bigbird(length, block, 3, 1, 2, heads=3, seed=5)
    n = made.q_blocks
    map = made.to_block_map()[0] > 0
    i, j = torch.arange(n)[:, None], torch.arange(n)
    known = ((i - j).abs() <= 1) | (i < 1) | (j < 1)
    assert map[:, known].all()
    assert ((map & ~known).sum(-1) <= 2).all()
    same(made, made.to_dense())
    if n > 20:
        assert not map[0].equal(map[1])
        assert (map & ~known).any()


@pytest.mark.parametrize(
    ("size", "tile", "window"),
    [((16, 24), (4, 8), (3, 1)), ((8, 8), (8, 8), (1, 1)), ((4, 8, 12), (2, 4, 4), (1, 3, 3)),
     ((16, 8), (4, 4), (9, 3))],
)  # fmt: skip
def test_tiles(size, tile, window) -> None:
    make = BlockMask.tile_2d if len(size) == 2 else BlockMask.tile_3d
    made = make(size, tile, window, 16)
    order = tile_order(size, tile)
    assert order.sort()[0].equal(torch.arange(order.numel()))
    at = torch.stack(torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij"), -1)
    at = at.flatten(0, -2)[order] // torch.tensor(tile)
    keep = torch.ones(len(at), len(at), dtype=torch.bool)
    for d, (n, t, w) in enumerate(zip(size, tile, window, strict=True)):
        for i, mine in enumerate(at[:, d].tolist()):
            tiles = n // t
            begin = min(max(mine - w // 2, 0), max(tiles - w, 0))
            keep[i] &= (at[:, d] >= begin) & (at[:, d] < begin + w)
    same(made, keep)


@pytest.mark.parametrize("block", BLOCKS)
def test_vlm(block) -> None:
    ids = torch.full((300,), -1)
    ids[10:90], ids[90:140], ids[200:290] = 0, 1, 2
    categories = ["dense", "sink", "document", "hybrid", "sink"]
    made = BlockMask.vlm(ids, categories, sinks=7, block_size=block)
    leading = torch.zeros(300, dtype=torch.bool)
    for begin in (10, 90, 200):
        leading[begin : begin + 7] = True
    q, kv = positions((300, 300))
    text, image = ids < 0, (ids[:, None] == ids) & (ids >= 0)
    either = text[:, None] | text
    terms = {"dense": torch.ones_like(either), "sink": either | leading,
             "document": either | image, "hybrid": either | image | leading}  # fmt: skip
    expected = torch.stack([terms[c] & (kv <= q) for c in categories])[None]
    assert made.to_dense().equal(expected)
    same(made, expected)


def strange(b, h, q, kv):
    return ((q + kv * (h + 1)) % 7 != b) & (q // 40 != kv // 50)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("lengths", [(17, 17), (100, 299), (64, 256)])
def test_from_fn_and_flex(block, lengths) -> None:
    made = BlockMask.from_fn(strange, lengths, block, batch=2, heads=3)
    b, h = torch.arange(2)[:, None, None, None], torch.arange(3)[:, None, None]
    expected = strange(b, h, torch.arange(lengths[0])[:, None], torch.arange(lengths[1]))
    same(made, expected)
    flex = create_block_mask(strange, 2, 3, *lengths, device="cpu", BLOCK_SIZE=block)
    again = BlockMask.from_flex(flex)
    assert again.to_dense().equal(expected)
    same(again, expected)
    back = BlockMask.from_flex(made.to_flex())
    assert back.to_dense().equal(expected)
    dense = create_block_mask(
        made.to_flex().mask_mod, 2, 3, *lengths, device="cpu", BLOCK_SIZE=block
    )
    assert BlockMask.from_flex(dense).to_dense().equal(expected)


@pytest.mark.parametrize("block", [16, 128])
def test_causal_as_flex_has_it(block) -> None:
    flex = create_block_mask(
        lambda b, h, q, kv: q >= kv, None, None, 384, 384, device="cpu", BLOCK_SIZE=block
    )
    made = BlockMask.causal(384, block)
    assert made.to_flex().to_dense().equal(flex.to_dense())
    assert BlockMask.from_flex(flex).to_block_map().equal(made.to_block_map())


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
def test_and_or(block, looks, monkeypatch) -> None:
    """Both where values decide shapes, as on a CPU, and where they do not, as on a GPU."""
    monkeypatch.setattr(_lists, "may_look", lambda t: looks)
    lengths = (203, 203)
    a = BlockMask.causal(lengths, block)
    b = BlockMask.documents([0, 60, 130, 203], block_size=block)
    c = BlockMask.from_fn(strange, lengths, block, batch=2, heads=3)
    generator = torch.Generator().manual_seed(0)
    d = torch.rand(2, 1, *lengths, generator=generator) < 0.5
    d = BlockMask.from_element_mask(d, block)
    e = torch.rand(3, -(-203 // block[0]), -(-203 // block[1]), generator=generator) < 0.3
    e = BlockMask.from_dense(e, block, lengths)
    for left, right in [(a, b), (b, a), (a, c), (c, b), (c, c), (d, c), (b | a, d), (e, c), (d, e)]:
        x, y = left.to_dense(), right.to_dense()
        same(left & right, x & y)
        same(left | right, x | y, whole=False)  # at the end of a sequence blocks stay partial
    assert (a & a).to_block_map().equal(a.to_block_map())
    with pytest.raises(ValueError, match="same seq_lens"):
        a & BlockMask.causal(200, block)
    with pytest.raises(ValueError, match="heads is equal or 1"):
        c | BlockMask.bigbird(203, 16, heads=2) if block == (16, 16) else c | _two_heads(block)
    with pytest.raises(TypeError):
        a & 3


def test_nothing_waits_for_a_gpu(monkeypatch) -> None:
    """No shape and no branch follows from a value: fake tensors have none."""
    monkeypatch.setattr(_lists, "may_look", lambda t: False)
    lists = BlockMask.sliding_window(203, 20, sinks=3, block_size=16)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        a = BlockMask.from_dense(torch.ones(2, 1, 13, 13, dtype=torch.bool), 16, (203, 203))
        b = BlockMask.from_element_mask(torch.ones(3, 203, 203, dtype=torch.bool), 16)
        c = BlockMask._make(
            *(_lists.Lists(*map(mode.from_tensor, lists.lists)), mode.from_tensor(lists.bits)),
            lists.block_size, lists.seq_lens,
        )  # fmt: skip
        made = (a | b) & (c | a)
        made.transposed()
        assert (made.batch, made.heads) == (2, 3)
        with pytest.raises(DataDependentOutputException):
            _ = made.density


def _two_heads(block) -> BlockMask:
    return BlockMask.from_element_mask(torch.ones(2, 203, 203, dtype=torch.bool), block)


def test_density_and_pictures(tmp_path) -> None:
    made = BlockMask.causal(1024, 128)
    assert made.density == 36 / 64
    drawn = str(made).split("\n")
    assert "56.2% of the blocks" in drawn[0]
    assert drawn[1].strip() == "▒"
    assert drawn[-1] == "█" * 7 + "▒"
    assert "seq_lens=(1024, 1024)" in repr(made)
    made.plot(tmp_path / "mask.png")
    assert (tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")
    made.plot(tmp_path / "of_all.png", batch=7, head=3)  # one for all of them
    two = BlockMask.from_dense(torch.ones(2, 3, 3, dtype=torch.bool), 16)
    two.plot(tmp_path / "second.png", head=1)
    with pytest.raises(ValueError, match="expected head < 2, got 2"):
        two.plot(tmp_path / "third.png", head=2)
    assert BlockMask.causal((0, 40)).density == 0


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else (result,):
            if isinstance(t, torch.Tensor):
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return result


LONG = 131_072


@pytest.mark.parametrize(
    "make",
    [
        lambda: BlockMask.causal(LONG),
        lambda: BlockMask.sliding_window(LONG, 256, sinks=16, block_size=16),
        lambda: BlockMask.documents(torch.arange(0, LONG + 1, 512), True, 16),
        lambda: BlockMask.documents(torch.arange(0, LONG + 1, 4096)),
        lambda: BlockMask.bigbird(LONG, 16),
        lambda: BlockMask.tile_3d((32, 64, 64), (2, 4, 8), (3, 3, 3), 16),
        lambda: BlockMask.sliding_window(LONG, 256) | BlockMask.documents([0, 99, 2222, LONG]),
        lambda: BlockMask.sliding_window(LONG, 256) & BlockMask.documents([0, 99, 2222, LONG]),
    ],
)
def test_memory_follows_the_blocks(make) -> None:
    """Also that of making it and its transpose: far from Sq * Skv, and from the grid of blocks."""
    with Largest() as largest:
        made = make()
        made.transposed()
    blocks = int(made.offsets[-1])
    kept = sum(t.nbytes for t in (*made.lists, made.bits))
    assert kept <= 8 * blocks + (1 << 20)
    assert largest.bytes <= 16 * blocks + 64 * LONG
    assert largest.bytes < LONG**2 // 1000


def test_from_fn_never_evaluates_everything() -> None:
    """Nor is there a tensor of the grid of blocks, which has 2048 * 2048 of them."""
    with Largest() as largest:
        made = BlockMask.from_fn(lambda b, h, q, kv: q == kv, 1 << 15, 16)
    assert int(made.offsets[-1]) == 2048
    assert largest.bytes < 2048 * 2048


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BlockMask.sliding_window(64, -1), ValueError, "left >= 0"),
        (lambda: BlockMask.sliding_window(64, 1.5), TypeError, "left to be an int"),
        (lambda: BlockMask.prefix_lm(64, -1), ValueError, "prefix >= 0"),
        (lambda: BlockMask.causal(64, 100), ValueError, "block sizes of"),
        (lambda: BlockMask.causal("64"), TypeError, "seq_lens"),
        (lambda: BlockMask.causal(64, offset=1.5), TypeError, "offset to be an int"),
        (lambda: BlockMask.documents([1, 4]), ValueError, "rise from 0"),
        (lambda: BlockMask.documents([0, 4, 2]), ValueError, "rise from 0"),
        (lambda: BlockMask.documents([0.0, 4.0]), TypeError, "of integers"),
        (lambda: BlockMask.documents([0, 40], total=30), ValueError, "total >= 40"),
        (lambda: BlockMask.bigbird(64, (16, 32)), ValueError, "square"),
        (lambda: BlockMask.tile_2d((8, 8), (3, 4), (1, 1)), ValueError, "multiples of tile"),
        (lambda: BlockMask.tile_2d((16, 16), (4, 4), (2, 1)), ValueError, "odd window"),
        (lambda: BlockMask.tile_2d((8, 8), (2, 4), (1, 1)), ValueError, "multiple of 16"),
        (lambda: BlockMask.tile_2d(16, (4, 4), (1, 1)), TypeError, "size of 2 numbers, got int"),
        (lambda: BlockMask.tile_2d((16, 16), (4, 4), (1,)), ValueError, "window of 2 numbers"),
        (lambda: BlockMask.tile_3d((4, 4, 4), (4, 4), (1, 1, 1)), ValueError, "tile of 3 numbers"),
        (lambda: BlockMask.vlm(torch.zeros(4), ["sink"]), TypeError, "of integers"),
        (lambda: BlockMask.vlm(torch.ones(4) > 0, ["sink"]), TypeError, "of integers, got torch.b"),
        (lambda: BlockMask.vlm(torch.zeros(2, 2).int(), ["sink"]), ValueError, r"\[S\], got"),
        (lambda: BlockMask.vlm(torch.zeros(4).int(), ["sinks"]), ValueError, "categories"),
        (lambda: BlockMask.from_fn(lambda b, h, q, k: q, 20), TypeError, "bool tensor"),
        (lambda: BlockMask.from_flex(3), TypeError, "flex_attention BlockMask"),
    ],
)
def test_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_compiles_without_a_break() -> None:
    """A mask is an argument as any other; its lists go to the op as tensors."""

    def attend(q: torch.Tensor, mask: BlockMask) -> torch.Tensor:
        return fastops.block_sparse_attention(q, q, q, mask)

    q = torch.randn(1, 2, 100, 32)
    mask = BlockMask.sliding_window(100, 30, block_size=32)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, mask), attend(q, mask))
