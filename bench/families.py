"""The families there are: every package of `bench` with the five names of bench/softmax."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType

import bench

NAMES = ("BARS", "OPS", "SUITES", "cases", "prepare")


def families() -> tuple[ModuleType, ...]:
    """softmax, the oldest, first; the rest by name."""
    found = [
        module
        for info in pkgutil.iter_modules(bench.__path__, "bench.")
        if info.ispkg and all(hasattr(module := import_module(info.name), name) for name in NAMES)
    ]
    return tuple(sorted(found, key=lambda module: (name_of(module) != "softmax", module.__name__)))


def name_of(family: ModuleType) -> str:
    return family.__name__.removeprefix("bench.")


def tests_of(family: ModuleType) -> str:
    """The folder of its tests, where it is not called like the family."""
    return f"tests/{getattr(family, 'TESTS', name_of(family))}"


FAMILIES = families()
