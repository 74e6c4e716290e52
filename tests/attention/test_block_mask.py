"""BlockMask: dense tensors to lists and back, transposing, what its constructor refuses."""

from __future__ import annotations

import pickle

import pytest
import torch

from fastops.attention import BlockMask, _lists
from fastops.attention._lists import FULL

SIZES = [(16, 16), (32, 64), (128, 16), (16, 128), (64, 64)]
LENGTHS = [(64, 64), (1, 1), (17, 203), (203, 131), (300, 16)]


def random_mask(*shape: int, block: tuple[int, int], density: float, seed: int = 0) -> torch.Tensor:
    """Elements with whole, empty and partial blocks in it."""
    generator = torch.Generator().manual_seed(seed)
    *outer, q, kv = shape
    grid = (*outer, -(-q // block[0]), -(-kv // block[1]))
    kind = torch.rand(grid, generator=generator)
    blocks = kind.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)[..., :q, :kv]
    elements = torch.rand(shape, generator=generator)
    return (blocks < density) | ((blocks > 0.8) & (elements < 0.5))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("block", SIZES)
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_element_mask_and_back(block, lengths, density) -> None:
    mask = random_mask(2, 3, *lengths, block=block, density=density)
    made = BlockMask.from_element_mask(mask, block)
    assert made.shape == (2, 3, *lengths)
    assert made.to_dense().equal(mask)
    rows = made.offsets.diff()
    for r, partial in enumerate(made.partial_offsets.diff()):
        listed = made.indices[made.offsets[r] : made.offsets[r] + rows[r]]
        for part in (listed[:partial], listed[partial:]):
            assert (part.diff() > 0).all()
    if density == 1.0:
        assert made.patterns.numel() == 0, "a block is whole where it fills what there is of it"


def test_equal_patterns_are_shared() -> None:
    mask = torch.ones(256, 256, dtype=torch.bool).tril()
    made = BlockMask.from_element_mask(mask, 32)
    assert made.bits.shape[0] == 1
    assert made.patterns.numel() == 8


@pytest.mark.parametrize("block", SIZES)
def test_transposed(block) -> None:
    mask = random_mask(2, 2, 203, 300, block=block, density=0.3)
    made = BlockMask.from_element_mask(mask, block)
    lists = made.transposed()
    assert made.transposed() is lists
    rows, columns = 4 * made.kv_blocks, made.q_blocks
    blocks = _lists.to_blocks(lists, rows, columns, made.bits.shape[0])
    grid = made._grid()
    back = torch.full_like(grid, -2)
    matrix, row = blocks.rows // made.kv_blocks, blocks.rows % made.kv_blocks
    back[matrix // 2, matrix % 2, blocks.columns, row] = blocks.patterns
    assert back.equal(grid)
    for r in range(rows):
        listed = lists.indices[lists.offsets[r] : lists.offsets[r + 1]]
        partial = lists.partial_offsets[r + 1] - lists.partial_offsets[r]
        for part in (listed[:partial], listed[partial:]):
            assert (part.diff() > 0).all()


def test_transposed_again_after_an_edit() -> None:
    map = torch.eye(4, dtype=torch.bool)
    made = BlockMask.from_dense(map, 16)
    before = made.transposed()
    made.indices[0] = 3  # in place
    assert made.transposed().offsets.tolist() == [0, 0, 1, 2, 4]
    made.indices = torch.tensor([1, 1, 2, 3], dtype=torch.int32)  # another tensor
    assert made.transposed().offsets.tolist() == [0, 0, 2, 3, 4]
    assert before.offsets.tolist() == [0, 1, 2, 3, 4]
    for i in range(20):  # a new tensor may be where the one before last was
        made.indices = torch.tensor([3, 3, 3, 3], dtype=torch.int32)
        made.indices = torch.tensor([i % 4] * 4, dtype=torch.int32)
        assert made.transposed().offsets.tolist() == [0] * (i % 4 + 1) + [4] * (4 - i % 4)


@pytest.mark.parametrize("lengths", [(128, 96), (100, 90)])
def test_from_dense(lengths) -> None:
    map = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    made = BlockMask.from_dense(map, 32, lengths)
    assert made.shape == (1, 2, *lengths)
    assert made.to_block_map().equal(2 * map[None].int())
    elements = map.repeat_interleave(32, 1).repeat_interleave(32, 2)
    assert made.to_dense().equal(elements[None, :, : lengths[0], : lengths[1]])
    assert made.bits.shape == (0, 32)


def test_lists_may_have_room() -> None:
    """What a GPU makes without a wait."""
    mask = random_mask(1, 2, 100, 70, block=(32, 16), density=0.3)
    made = BlockMask.from_element_mask(mask, (32, 16))
    grid = made._grid().reshape(8, 5)
    rows = torch.arange(8)[:, None].expand(8, 5)
    blocks = _lists.Blocks(
        torch.where(grid == -2, 8, rows).flatten(),
        torch.arange(5).expand(8, 5).flatten(),
        grid.flatten(),
    )
    roomy = _lists.to_lists(blocks, 8, 5, 40)
    assert roomy.indices.numel() == roomy.patterns.numel() == 40
    again = BlockMask(
        *roomy, made.bits, block_size=(32, 16), seq_lens=made.seq_lens, batch=1, heads=2
    )
    assert again.to_dense().equal(mask)
    transposed = again.transposed()
    used = int(transposed.offsets[-1])
    assert transposed.indices[:used].equal(made.transposed().indices)
    assert transposed.offsets.equal(made.transposed().offsets)


def test_pack_bits() -> None:
    mask = torch.rand(3, 7, 64, generator=torch.Generator().manual_seed(1)) < 0.5
    words = _lists.pack_bits(mask)
    assert words.shape == (3, 7, 2)
    bit = torch.arange(32)
    spelled = (mask.unflatten(-1, (2, 32)).long() << bit).sum(-1)
    assert (words.long() & 0xFFFFFFFF).equal(spelled)
    assert _lists.unpack_bits(words).equal(mask)


def test_share() -> None:
    rows = torch.randint(3, (500, 3), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    first, which = _lists.share(rows)
    assert rows[first][which].equal(rows)
    assert first.numel() == rows.unique(dim=0).shape[0]


def test_pickle_and_device() -> None:
    made = BlockMask.from_element_mask(torch.ones(40, 40, dtype=torch.bool).tril(), 16)
    made.transposed()
    again = pickle.loads(pickle.dumps(made))
    assert again.to_dense().equal(made.to_dense())
    assert made.to("cpu") is made
    assert made.to("meta").device.type == "meta"


def good() -> dict:
    made = BlockMask.from_element_mask(torch.ones(40, 50, dtype=torch.bool).tril(), 16)
    return {
        **made.lists._asdict(),
        "bits": made.bits,
        "block_size": 16,
        "seq_lens": (40, 50),
    }


def edited(t: torch.Tensor, at: int, value: int) -> torch.Tensor:
    t = t.clone()
    t[at] = value
    return t


def test_constructor_takes_lists() -> None:
    assert BlockMask(**good()).to_dense().equal(torch.ones(1, 1, 40, 50, dtype=torch.bool).tril())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"block_size": 24}, ValueError, "block sizes of"),
        ({"block_size": 16.0}, TypeError, "block_size to be an int"),
        ({"seq_lens": (40, -1)}, ValueError, "lengths in"),
        ({"seq_lens": (60, 50)}, ValueError, "offsets of 5 elements"),
        ({"batch": 2}, ValueError, "offsets of 7 elements"),
        ({"heads": 0}, ValueError, "heads >= 1"),
        ({"heads": 1.0}, TypeError, "heads to be an int"),
        ({"indices": lambda g: edited(g["indices"], 1, 4)}, ValueError, "indices in"),
        ({"indices": lambda g: edited(g["indices"], 0, -1)}, ValueError, "indices in"),
        ({"indices": lambda g: g["indices"].long()}, TypeError, "indices of dtype"),
        ({"indices": lambda g: g["indices"].tolist()}, TypeError, "indices to be a tensor"),
        ({"indices": lambda g: edited(g["indices"], 2, 1)}, ValueError, "at most once"),
        ({"offsets": lambda g: edited(g["offsets"], 1, 9)}, ValueError, "offsets to rise"),
        ({"offsets": lambda g: edited(g["offsets"], -1, 99)}, ValueError, "offsets to rise"),
        ({"offsets": lambda g: edited(g["offsets"], 0, 1)}, ValueError, "offsets to rise"),
        ({"partial_offsets": lambda g: g["offsets"]}, ValueError, "partial_offsets to rise"),
        ({"patterns": lambda g: edited(g["patterns"], 0, 9)}, ValueError, "patterns in"),
        ({"bits": lambda g: g["bits"][:, :4]}, ValueError, "bits contiguous"),
        ({"bits": lambda g: g["bits"][:, :4].clone()}, ValueError, "bits of 8 words"),
        ({"bits": lambda g: g["bits"].to("meta")}, ValueError, "bits on cpu"),
    ],
)  # fmt: skip
def test_constructor_refuses(change, error, message) -> None:
    arguments = good()
    arguments |= {k: v(arguments) if callable(v) else v for k, v in change.items()}
    with pytest.raises(error, match=f"fastops.BlockMask: expected.*{message}"):
        BlockMask(**arguments)


@pytest.mark.parametrize("make", [BlockMask.from_dense, BlockMask.from_element_mask])
def test_dense_tensors_refused(make) -> None:
    with pytest.raises(TypeError, match=r"torch\.bool"):
        make(torch.ones(4, 4))
    with pytest.raises(TypeError, match="to be a tensor"):
        make([[True]])
    with pytest.raises(ValueError, match="2 to 4 dims"):
        make(torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="block sizes of"):
        make(torch.ones(4, 4, dtype=torch.bool), 20)


def test_from_dense_lengths() -> None:
    with pytest.raises(ValueError, match=r"expected map of \(3, 2\) blocks"):
        BlockMask.from_dense(torch.ones(2, 2, dtype=torch.bool), 32, (70, 60))
    with pytest.raises(ValueError, match="of a head at least"):
        BlockMask.from_dense(torch.ones(0, 2, 2, dtype=torch.bool), 32)


def test_full_blocks_name_no_pattern() -> None:
    assert FULL == -1
    made = BlockMask.from_dense(torch.ones(2, 2, dtype=torch.bool), 16, (20, 32))
    assert made.patterns.numel() == 0
    assert made.transposed().patterns.numel() == 0
