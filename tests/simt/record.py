"""Runs the conformance program on this machine's GPU and keeps what it left in golden.json.

`python -m tests.simt.record PROGRAM [FILE]`; `make record-conformance` builds PROGRAM first. FILE
gets the same record: `make gpu` keeps one beside the device's results.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zlib
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden.json")
NOT_RECORDED = "not yet recorded"


def pack(words: list[int]) -> str:
    data = b"".join(word.to_bytes(4, "little") for word in words)
    return base64.b64encode(zlib.compress(data, 9)).decode()


def unpack(text: str) -> list[int]:
    data = zlib.decompress(base64.b64decode(text))
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]


def parse(output: str) -> dict[str, object]:
    """The program's lines, as golden.json has them."""
    lines = dict(line.split(":", 1) for line in output.splitlines())
    device = lines.pop("device").strip()
    probes = {name: pack([int(w, 16) for w in words.split()]) for name, words in lines.items()}
    return {"device": device, "probes": probes}


def main() -> None:
    program, *files = sys.argv[1:]
    run = subprocess.run([program], capture_output=True, text=True)
    print(run.stderr, end="")
    if run.returncode == 2:
        sys.exit(2)
    text = json.dumps(parse(run.stdout), indent=2) + "\n"
    for path in (GOLDEN, *map(Path, files)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"wrote {path}")
    sys.exit(run.returncode)


if __name__ == "__main__":
    main()
