"""What is here and what works: ``python -m fastops.info [--json]``.

Versions, what was built and for which architectures, the CPU's instruction sets, and each op on
each device with the reason where it is not available. Every probe is guarded, so that the report
also comes when nothing loads.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

OPS = (
    *("softmax", "log_softmax", "logsumexp", "softmax_topk"),
    *("entmax", "entmax_loss", "pladis_softmax"),
    *("softpick", "stablemax", "log_stablemax"),
    *("nm_mask", "nm_prune", "nm_compress", "nm_linear"),
    *("token_match", "token_plan", "plan_compose", "token_select", "merge_tokens"),
    *("unmerge_tokens", "block_sparse_attention"),
)


def _guarded(probe: Callable[[], Any]) -> Any:
    try:
        return probe()
    except Exception as error:  # a report that dies of what it reports on helps nobody
        return f"unknown ({type(error).__name__}: {error})"


def _version(package: str) -> str:
    try:
        return importlib.import_module(package).__version__
    except ImportError:
        return "not installed"


def _versions() -> dict[str, str]:
    import fastops

    return {
        "fastops": fastops.__version__,
        "python": platform.python_version(),
        "torch": _guarded(lambda: _version("torch")),
        "numpy": _guarded(lambda: _version("numpy")),
        "cupy": _guarded(lambda: _version("cupy")),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _build() -> dict[str, Any]:
    from fastops import _load

    record = _load.build_record()
    libraries = sorted(path.name for path in _load.FOLDER.glob("*.so"))
    return {**record, "libraries": libraries}


def _cpu() -> dict[str, Any]:
    from fastops._lib import _native

    rows = _native.cpu_isas()
    return {
        "in_use": _native.active_isa(),
        "built": [name for name, built, _ in rows if built],
        "supported_here": [name for name, _, supported in rows if supported],
    }


def _hopper() -> str:
    """Whether the kernels written for sm_90a are built and may be chosen."""
    from fastops import _load

    record = _load.build_record()
    if not any(str(arch).startswith("9.") for arch in record.get("cuda_archs") or []):
        return "not built"
    asked, by_default = os.environ.get("FASTOPS_SM90"), record.get("hopper_by_default") is True
    unproved = "" if by_default else ": no record from hardware speaks for them yet"
    if asked:
        return f"on (FASTOPS_SM90=1){unproved}" if asked == "1" else f"off (FASTOPS_SM90={asked})"
    if by_default:
        return "on: a record from hardware speaks for them; FASTOPS_SM90=0 turns them off"
    return f"built, but off{unproved}; FASTOPS_SM90=1 turns them on"


def _gpus() -> list[str]:
    import torch

    return [
        "{} (sm_{}{})".format(torch.cuda.get_device_name(i), *torch.cuda.get_device_capability(i))
        for i in range(torch.cuda.device_count())
    ]


def _availability(op: str, device: str) -> str:
    """ "yes", or why not."""
    import torch

    from fastops import _load

    if device in _load.problems:
        return _load.problems[device]
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastops::{op}", device.upper()):
        return f"the {device} library has no kernel for it"
    if device == "cuda" and not torch.cuda.is_available():
        return "kernels are loaded, but torch sees no GPU"
    return "yes"


def _ops() -> dict[str, dict[str, str]]:
    return {
        op: {
            device: _guarded(lambda o=op, d=device: _availability(o, d))
            for device in ("cpu", "cuda")
        }
        for op in OPS
    }


def collect() -> dict[str, Any]:
    """The whole report as plain data."""
    return {
        "versions": _guarded(_versions),
        "build": _guarded(_build),
        "cpu": _guarded(_cpu),
        "hopper_kernels": _guarded(_hopper),
        "gpus": _guarded(_gpus),
        "ops": _guarded(_ops),
    }


def _lines(report: dict[str, Any]) -> list[str]:
    lines = []
    for section, content in report.items():
        lines.append(section)
        if section == "ops" and isinstance(content, dict):
            lines += _op_lines(content)
        elif isinstance(content, dict):
            width = max((len(key) for key in content), default=0)
            for key, value in content.items():
                value = ", ".join(map(str, value)) if isinstance(value, list) else value
                lines.append(f"  {key:{width}}  {'none' if value in (None, '') else value}")
        elif isinstance(content, list):
            lines += [f"  {item}" for item in content] or ["  none"]
        else:
            lines.append(f"  {content}")
    return lines


def _op_lines(ops: dict[str, dict[str, str]]) -> list[str]:
    """A table of yes and no, each reason for a no once below it."""
    reasons: list[str] = []
    width = max(map(len, ops))
    lines = [f"  {'':{width}}  {'cpu':6} cuda"]
    for op, devices in ops.items():
        cells = []
        for answer in devices.values():
            if answer != "yes" and answer not in reasons:
                reasons.append(answer)
            cells.append("yes" if answer == "yes" else f"no [{reasons.index(answer) + 1}]")
        lines.append(f"  {op:{width}}  {cells[0]:6} {cells[1]}")
    return lines + [f"  [{i + 1}] {reason}" for i, reason in enumerate(reasons)]


def main(argv: list[str] | None = None) -> int:
    """Prints the report; always 0."""
    parser = argparse.ArgumentParser(prog="python -m fastops.info", description="What works here.")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    report = collect()
    if parser.parse_args(argv).json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(_lines(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
