"""python -m bench.merge.memory: what matching, merging and unmerging an image's tokens needs
above inputs and outputs, that is the tokens, the merged rows and the tokens put back.

Each candidate runs once in a process of its own, warmed up on a small image, and the growth of the
resident set at its greatest is read from the kernel: scratch buffers of threads count like tensors.
Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from .cases import MODELS

# Most of our share of what the public algorithm needs.
LIMITS = {"SD 512px": 1 / 10, "SD 1024px": 1 / 20}
CANDIDATES = ("fastops", "torch", "tomesd")


def peak_bytes(candidate: str, name: str) -> int:
    """In a fresh process."""
    command = [sys.executable, "-m", "bench.merge.memory", "--one", candidate, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def _one(candidate: str, name: str) -> int:
    import torch

    from .ops import there_and_back

    torch.set_num_threads(2)

    model = MODELS[name]
    with torch.no_grad():
        there_and_back(torch.randn(2, 64, 320), 32)[candidate]()  # loads libraries, starts threads
        run = there_and_back(torch.randn(model.shape), model.r)[candidate]
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the present from here on
        before = _status("VmRSS")
        out = run()
    outputs = out.numel() + out.shape[0] * (out.shape[1] - model.r) * out.shape[2]
    return _status("VmHWM") - before - outputs * out.element_size()


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.merge.memory", description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("CANDIDATE", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(_one(*args.one))
        return 0
    good = True
    for name, limit in LIMITS.items():
        peaks = {candidate: peak_bytes(candidate, name) for candidate in CANDIDATES}
        share = peaks["fastops"] / peaks["torch"]
        good &= share <= limit
        told = ", ".join(f"{who} {peak / 2**20:.1f} MB" for who, peak in peaks.items())
        print(f"{name}: {told}; 1/{1 / share:.0f} of torch's (at most 1/{1 / limit:.0f})")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
