"""Calls CMake. Everything that is built, and how, is in CMakeLists.txt.

Environment: FASTOPS_CUDA=auto|on|off, TORCH_CUDA_ARCH_LIST, CMAKE_ARGS, MAX_JOBS.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures and builds into the package's `_lib` folder; later runs rebuild what changed."""

    def run(self):
        import pybind11
        import torch

        package = ROOT if self.editable_mode or self.inplace else Path(self.build_lib).resolve()
        output = package / "fastops" / "_lib"
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.run(
            [
                "cmake",
                "-S",
                str(ROOT),
                "-B",
                str(build),
                "-G",
                "Ninja",
                f"-DFASTOPS_OUTPUT={output}",
                f"-DFASTOPS_TORCH_ROOT={Path(torch.__file__).parent}",
                f"-DFASTOPS_CUDA={os.environ.get('FASTOPS_CUDA', 'auto')}",
                f"-DFASTOPS_CUDA_ARCHS={os.environ.get('TORCH_CUDA_ARCH_LIST', '')}",
                "-DFASTOPS_PYBIND=ON",
                # Test-only parts; OFF forgets an earlier ON, CMAKE_ARGS may say it again.
                "-DFASTOPS_SIMT=OFF",
                "-DFASTOPS_NATIVE_TESTS=OFF",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                *shlex.split(os.environ.get("CMAKE_ARGS", "")),
            ],
            check=True,
        )
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)

    def get_outputs(self):
        return []


class AnyPythonWheel(bdist_wheel):
    """The op libraries use torch's stable ABI and no Python symbol, so one wheel serves every
    Python; only `_native` is of the building Python, and the package does without it elsewhere."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension("fastops._lib", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
)
