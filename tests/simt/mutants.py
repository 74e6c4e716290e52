"""The synchronisation lines of the kernels, each of which the mutation test leaves out in turn.

`python -m tests.simt.mutants FOLDER` copies the kernel files there, as they are under csrc, with a
switch at each such line (left_out.h): one build then holds every mutant.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
# csrc/cuda/tile belongs to every family that includes it.
FILES = sorted([*CSRC.glob("*/cuda/**/*.cu*"), *CSRC.glob("cuda/tile/*.cuh")])

NAMES = (
    r"__syncthreads|__syncwarp|__threadfence|cluster_arrive|cluster_wait|cp_async_commit"
    r"|cp_async_wait<[^>]+>|named_barrier_sync|named_barrier_arrive|mbarrier_(?!test_)\w+"
    r"|bulk_commit|bulk_wait(?:_read)?<[^>]+>|fence_proxy_async|fence_mbarrier_init"
    r"|wgmma_(?:fence|commit)|wgmma_wait<[^>]+>"
)
STATEMENT = re.compile(rf"^(\s*)((?:ptx::)?(?:{NAMES})\(.*\);)(?=\s*(?://.*)?$)")
COMMENT = re.compile(r"//.*$")


def synchronisations(path: Path) -> list[tuple[int, str]]:
    """(line number from 0, statement) of each in a file."""
    lines = path.read_text().split("\n")
    return [(n, m[2]) for n, line in enumerate(lines) if (m := STATEMENT.match(line))]


def overlooked(text: str) -> list[str]:
    """Lines that synchronise but are no statement on a line of its own, so cannot be left out."""
    name = re.compile(rf"\b(?:{NAMES})\(")
    return [
        line
        for line in text.split("\n")
        if name.search(COMMENT.sub("", line)) and not STATEMENT.match(line)
    ]


def mutants() -> list[str]:
    """ "file:line statement"; the position in the list is the mutant's number."""
    return [
        f"{path.relative_to(CSRC)}:{number + 1} {statement}"
        for path in FILES
        for number, statement in synchronisations(path)
    ]


def write(folder: Path) -> None:
    mutant = 0
    for path in FILES:
        lines = path.read_text().split("\n")
        for number, _ in synchronisations(path):
            lines[number] = STATEMENT.sub(
                rf"\1{{ if (!simt_left_out({mutant})) \2 }}", lines[number]
            )
            mutant += 1
        copy = folder / path.relative_to(CSRC)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("\n".join(lines))
    (folder / "mutants.txt").write_text("\n".join(mutants()))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
