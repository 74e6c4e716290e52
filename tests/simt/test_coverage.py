"""What tests.simt.coverage finds missing, in runs made up here."""

from __future__ import annotations

import pytest

from tests.simt import coverage

DEFINED = {
    0x10: "attention::tile_kernel<__half, 64>",
    0x20: "softmax::row_kernel<fastops::softmax::cuda::Forward<float, true> >",
    0x30: "softmax::plain_kernel",
}
BUDGETS = [
    {"kernel": "tile_kernel<*>", "dynamic": 4096},
    {"kernel": "row_kernel<Forward<*>>", "dynamic": {"usual": 512, "most": 1024}},
    {"kernel": "plain_kernel"},
]


def lines(**asked: list[int]) -> list[str]:
    addresses = {"tile": 0x10, "row": 0x20, "plain": 0x30}
    return [
        f"{coverage.LIBRARY}.so {addresses[kernel]:x} {order} {when} {bytes_}"
        for kernel, sizes in asked.items()
        for bytes_ in sizes
        for order in ("ascending", "descending", "random")
        for when in ("late", "early")
    ]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"tile": [4096], "row": [16, 512, 1024], "plain": [0]}, []),
        ({"tile": [4096, 4112]}, ["tile_kernel"]),
        ({"tile": [4080, 4096]}, ["tile_kernel"]),
        ({"row": [512, 1040]}, ["row_kernel"]),
        ({"row": [16, 1024]}, ["row_kernel"]),
        ({"plain": [16]}, ["plain_kernel"]),
    ],
)
def test_launches_keep_to_their_shared_memory(asked: dict, found: list[str]) -> None:
    outside = coverage.outside_budget(DEFINED, lines(**asked), BUDGETS)
    assert [text.partition("<")[0].partition(":")[0] for text in outside] == found


def test_every_kernel_runs_every_way() -> None:
    everything = lines(tile=[4096], row=[512], plain=[0])
    assert coverage.missing(DEFINED, everything) == []
    (never,) = coverage.missing(DEFINED, lines(tile=[4096], row=[512]))
    assert "plain_kernel" in never and "has not run" in never
    early = [line for line in everything if " late " not in line or " 10 " not in line]
    (late,) = coverage.missing(DEFINED, early)
    assert "tile_kernel" in late and "late" in late
