"""Loads the op libraries, and remembers why where it cannot.

``import fastops`` never fails for a library's sake: what went wrong is kept in :data:`problems`,
and the first call that needs the library raises it: what was built, what is here, and the fix.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "_lib"
MINIMUM_TORCH = (2, 11)
REBUILD = "rebuild it here: `pip install .` (or `pip install -e .`) in a clone of fastops"

problems: dict[str, str] = {}
"""Library ("cpu" or "cuda") -> why its ops are not available; empty when all is well."""


def torch_version() -> tuple[int, ...]:
    """Major and minor version of the torch that is imported."""
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def build_record() -> dict:
    """What the build wrote beside the libraries; empty where there is no record."""
    try:
        return json.loads((FOLDER / "build.json").read_text())
    except (OSError, ValueError):
        return {}


def _describe_build() -> str:
    record = build_record()
    if not record:
        return "there is no build record"
    cuda = f"with CUDA {record['cuda']}" if record.get("cuda") else "without CUDA"
    return (
        f"built for {record.get('system', '?')} against torch {record.get('torch', '?')} "
        f"(serves torch >= {'.'.join(map(str, MINIMUM_TORCH))}), {cuda}"
    )


def _try(key: str, library: str) -> None:
    path = FOLDER / library
    if torch_version() < MINIMUM_TORCH:
        minimum = ".".join(map(str, MINIMUM_TORCH))
        problems[key] = (
            f"torch {torch.__version__} is imported, but fastops needs torch >= {minimum}; "
            "upgrade torch"
        )
    elif not path.exists():
        problems[key] = f"{library} was not built ({_describe_build()}); {REBUILD}"
    else:
        try:
            torch.ops.load_library(str(path))
        except Exception as error:  # whatever a loader can raise is recorded, never lost
            problems[key] = (
                f"{library} does not load under torch {torch.__version__} ({_describe_build()}): "
                f"{error}; {REBUILD}"
            )


def load() -> None:
    """Loads what fits the torch at hand: CPU ops always, CUDA ops under a CUDA build of torch.

    For tests, FASTOPS_SIMT=1 has the CUDA kernels serve CPU tensors, emulated (docs/simt.md).
    """
    simt = os.environ.get("FASTOPS_SIMT") == "1"
    _try("cpu", "libfastops_simt.so" if simt else "libfastops.so")
    if "cpu" in problems:
        problems["cuda"] = problems["cpu"]
    elif torch.version.cuda is None:
        problems["cuda"] = (
            f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch"
        )
    else:
        _try("cuda", "libfastops_cuda.so")


def require(name: str, device: torch.device) -> None:
    """Raises RuntimeError where the ops of `device` are not available."""
    key = "cuda" if device.type == "cuda" else "cpu"
    if key in problems:
        raise RuntimeError(f"{name}: the {key} kernels are not available: {problems[key]}")
    if device.type not in ("cpu", "cuda", "meta"):
        raise RuntimeError(f"{name}: expected tensors on cpu or cuda, got {device}")


def op(name: str, overload: str = "default") -> Callable:
    """The op overload ``torch.ops.fastops.<name>.<overload>``, or a stand-in that says why not."""
    if "cpu" not in problems:
        return getattr(getattr(torch.ops.fastops, name), overload)

    def unavailable(*args, **kwargs):
        raise RuntimeError(f"fastops.{name}: not available: {problems['cpu']}")

    return unavailable


def fast_op(name: str, overload: str = "default") -> Callable:
    """The same without OpOverload's own layers: 0.3 us less a call, opaque to compilers."""
    found = op(name, overload)
    return getattr(found, "_op", found)


load()
