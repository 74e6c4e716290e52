"""python -m bench.gpu: on a machine with an NVIDIA GPU, prove, measure and publish.

Uses the interpreter and the torch it is started with, and no network. In order: every op's
correctness on the GPU, the sanitizers' word, benchmarks under the GPU's own ceilings, a report. A
part that fails does not stop the rest; what is known is kept at once in bench/results/<device>/.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..core import env, results
from ..peers import registry
from . import library, runner, steps
from .steps import PARTS, ROOT

LOGS = ROOT / "build" / "gpu"
NO_DEVICE, UNUSABLE = 2, 3
NEEDED = {
    "pytest": "nothing was tested",
    "hypothesis": "nothing was tested",
    "cupy": "CuPy in, CuPy out was not tested",
    "rich": "nothing was measured, and there is no report",
    "jinja2": "there is no report",
    "matplotlib": "there is no report",
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--part",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        metavar="PART",
        help=f"only these: {', '.join(PARTS)}",
    )
    add("--op", nargs="+", metavar="OP", help="only steps about these ops (as `python -m bench`)")
    add(
        "--minutes",
        type=float,
        metavar="M",
        help="begin nothing after M minutes, interrupt what runs then; --continue goes on later",
    )
    add(
        "--continue",
        dest="resume",
        action="store_true",
        help="leave out what has passed with the same library",
    )
    add(
        "--prebuilt",
        type=Path,
        metavar="DIR",
        help="take libfastops_cuda.so and what is beside it from there instead of building",
    )
    add("--build", action="store_true", help="build even where a library from elsewhere is here")
    add("--quick", action="store_true", help="a taste of every benchmark")
    add("--list", action="store_true", help="say what would be run; needs no GPU")
    return parser.parse_args(argv)


def why_no_device() -> str:
    """Empty where torch has a GPU to work on."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    begin = time.monotonic()
    args = parse(argv)
    if not args.list and (why := why_no_device()):
        print(f"bench.gpu: nothing was run: {why}", file=sys.stderr)
        return NO_DEVICE
    if unknown := sorted(set(args.op or ()) - set(steps.every_op())):
        print(f"bench.gpu: no op {', '.join(unknown)}; there are: {', '.join(steps.every_op())}")
        return UNUSABLE
    device = "device" if args.list else results.folder_of(torch.cuda.get_device_name())
    folder = results.FOLDER / device
    hopper = args.list or torch.cuda.get_device_capability()[0] == 9
    todo = steps.plan(args.part, args.op, folder, args.quick, hopper)
    if args.list:
        for step in todo:
            print(step.key, f"({step.missing})" if step.missing else "")
        return 0

    try:
        prepare(args)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"bench.gpu: nothing was run: there is no library: {error}", file=sys.stderr)
        return UNUSABLE
    proof = runner.Proof(folder / "proof.json", library.name())
    machine = env.describe("cuda")
    proof.facts = {"machine": machine, "missing": missing()}
    print(f"{env.headline(machine)}; library {proof.library}")
    for name, why in proof.facts["missing"].items():
        print(f"missing: {name}: {why}")
    if args.resume:
        todo = proof.left(todo)
    seconds = None if args.minutes is None else 60 * args.minutes - (time.monotonic() - begin)
    outcomes = runner.run(todo, proof, LOGS / device, seconds)
    good = all(outcome.good for outcome in outcomes)
    if "report" in args.part:
        outcomes_kept = list(proof.outcomes.values())
        try:
            from . import publish  # needs more than tests do: rich, jinja2, matplotlib

            found = publish.publish(folder, outcomes_kept, proof.facts["missing"], machine)
            print("\n".join(f"wrote {path.relative_to(ROOT)}" for path in found))
        except Exception as error:  # the results themselves are in files already
            print(f"report failed: {type(error).__name__}: {error}")
            good = False
    for outcome in outcomes:
        if not outcome.good:
            print(f"{outcome.key}: {runner.line(outcome)} ({LOGS / device / outcome.log})")
    print(f"{sum(o.good for o in outcomes)} of {len(outcomes)} steps passed")
    return 0 if good else 1


def prepare(args: argparse.Namespace) -> None:
    """Sees to it that there is a library, and a current one where it is built in this tree."""
    here = (library.FOLDER / library.NAME).exists()
    if args.prebuilt:
        library.take(args.prebuilt)
    elif args.build or not here or library.build_folder().exists():
        library.build(torch.cuda.get_device_capability())


def missing() -> dict[str, str]:
    """What this machine lacks of all that could be used, and why."""
    found = registry.missing("cuda")
    if not steps.sanitizer():
        found["compute-sanitizer"] = "not installed, so nothing was sanitized"
    for package, lost in NEEDED.items():
        if importlib.util.find_spec(package) is None:
            found[package] = f"not installed, so {lost}"
    if torch.cuda.device_count() < 2:
        found["second GPU"] = "a device other than the current one was not tested"
    return found


if __name__ == "__main__":
    sys.exit(main())
