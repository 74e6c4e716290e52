"""The machine and the software a result came from. Every probe may fail; none may raise."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import fastops
from fastops import info

ROOT = Path(__file__).resolve().parents[2]


def describe(device: str = "cpu") -> dict[str, Any]:
    """A flat, JSON-able description: CPU, caches, memory, GPU, versions, git hash, date."""
    facts: dict[str, Callable[[], Any]] = {
        "date": lambda: datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_name,
        "isa": active_isa,
        "cores": cores,
        "caches": _caches,
        "memory_gib": lambda: round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
        ),
        "load": lambda: round(os.getloadavg()[0], 2),
        "os": lambda: f"{platform.system()} {platform.machine()}",
        "python": platform.python_version,
        "torch": lambda: torch.__version__,
        "fastops": lambda: fastops.__version__,
        "git": _git_hash,
    }
    if device == "cuda":
        facts |= {
            "gpu": lambda: torch.cuda.get_device_name(),
            "capability": lambda: "{}.{}".format(*torch.cuda.get_device_capability()),
            "hopper_kernels": _hopper_kernels,
            "sms": lambda: torch.cuda.get_device_properties(0).multi_processor_count,
            "l2_mib": lambda: torch.cuda.get_device_properties(0).L2_cache_size >> 20,
            "gpu_memory_gib": lambda: round(
                torch.cuda.get_device_properties(0).total_memory / 2**30, 1
            ),
            "cuda": lambda: torch.version.cuda,
            "driver": lambda: _run(
                "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
            ),
        }
    return {name: _guarded(probe) for name, probe in facts.items()}


def keep_freed_memory() -> bool:
    """Has malloc keep what is freed, for whoever allocates next: glibc hands blocks of megabytes
    back to the kernel, and who pays for their pages anew would be a matter of turns. False where
    the C library has no such setting."""
    trim_threshold, mmap_max, most = -1, -4, 2**31 - 1
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(mmap_max, 0) and mallopt(trim_threshold, most))


def headline(machine: dict[str, Any]) -> str:
    """One line naming what was measured on."""
    if gpu := gpu_name(machine):
        return f"{gpu}, CUDA {machine['cuda']}, torch {machine['torch']}"
    caches = ", ".join(f"{name} {size}" for name, size in (machine.get("caches") or {}).items())
    return (
        f"{machine['cpu']} ({machine['isa']}), {machine['cores']} cores, {caches}, "
        f"torch {machine['torch']}"
    )


def gpu_name(machine: dict[str, Any]) -> str | None:
    """What it is called, and whether the kernels that need Hopper were on; None on a CPU."""
    hopper = ", Hopper kernels" if machine.get("hopper_kernels") else ""
    return machine["gpu"] + hopper if machine.get("gpu") else None


def active_isa() -> str:
    """The instruction set the CPU kernels run on."""
    from fastops._lib import _native

    return _native.active_isa()


def cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_bytes(device: str) -> int:
    """The last-level cache, as far as the machine tells (32 MiB where it does not)."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).L2_cache_size
    sizes = [_parse_size(size) for size in (_guarded(_caches) or {}).values()]
    return max(sizes, default=32 << 20)


def _guarded(probe: Callable[[], Any]) -> Any:
    try:
        return probe()
    except Exception:
        return None


def _hopper_kernels() -> bool:
    """Whether what is measured here may run the kernels that need Hopper."""
    on = info.collect()["hopper_kernels"].startswith("on")
    return on and torch.cuda.get_device_capability()[0] == 9


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.lower().startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = (
            (index / name).read_text().strip() for name in ("type", "level", "size")
        )
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def _parse_size(text: str) -> int:
    return int(text[:-1]) << {"K": 10, "M": 20}[text[-1]]


def _git_hash() -> str:
    return _run("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _run(*command: str) -> str:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
