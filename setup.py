"""Adds the optional C++ and CUDA extension `fastdiff._C`; everything else about the package is in pyproject.toml."""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

MACROS = [("TORCH_TARGET_VERSION", "0x020a000000000000")]
CXX_FLAGS = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-g0"]
NVCC_FLAGS = ["-O3", "--fmad=false", "-Xcompiler", "-ffp-contract=off"]


def warn(reason):
    print(f"warning: fastdiff is built without its C++ extension: {reason}", file=sys.stderr, flush=True)


def find(*patterns):
    return sorted(path.as_posix() for pattern in patterns for path in Path().glob(pattern))


def sanitizer_flags():
    """What FASTDIFF_SANITIZE=address,undefined or =thread adds for compiler and linker; see `make test-asan`."""
    names = os.environ.get("FASTDIFF_SANITIZE")
    if not names:
        return []
    # ThreadSanitizer sees the order of things among std::threads, but not among the OpenMP threads of torch.
    threads = ["-DFASTDIFF_STD_THREADS"] if names == "thread" else []
    return [f"-fsanitize={names}", "-fno-sanitize-recover=all", "-O1", "-g1", *threads]


def has_python_header():
    """Whether the Python module can be built too; without it the kernels are reached through torch alone."""
    return Path(sysconfig.get_paths()["include"], "Python.h").exists()


def extension():
    """Return the arguments that make `setup` build the extension; none where it is not wanted or cannot be built."""
    sources = find("csrc/cpu/*.cpp", *(["csrc/python/*.cpp"] if has_python_header() else []))
    if not sources or os.environ.get("FASTDIFF_NO_EXT", "0") not in ("", "0"):
        return {}
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        warn("a free-threaded Python has no stable ABI")
        return {}
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        warn(f"torch cannot be imported in the build environment ({error})")
        return {}

    class OptionalBuild(cpp_extension.BuildExtension):
        """A build that fails leaves a pure-Python package, tagged as one, and a warning."""

        def run(self):
            inplace = self.inplace
            try:
                super().run()
            except Exception as error:
                self.inplace = inplace
                warn(f"its build failed ({' '.join(str(error).split())}); the compiler's own words stand above")
                self.forget()

        def forget(self):
            """Remove what an earlier build left, which the Python code no longer matches, and become a pure package."""
            for unbuilt in self.extensions:
                Path(self.get_ext_fullpath(unbuilt.name)).unlink(missing_ok=True)
            self.extensions = []
            self.distribution.ext_modules = []
            wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
            if wheel is not None:
                wheel.root_is_pure = True

    nvcc = cpp_extension.CUDA_HOME and Path(cpp_extension.CUDA_HOME, "bin", "nvcc")
    cuda_sources = find("csrc/cuda/*.cu", "csrc/cuda/*.cpp") if torch.version.cuda and nvcc and nvcc.exists() else []
    kind = cpp_extension.CUDAExtension if cuda_sources else cpp_extension.CppExtension
    module = kind(
        "fastdiff._C",
        sources + cuda_sources,
        include_dirs=[str(Path("csrc").resolve())],
        define_macros=MACROS,
        extra_compile_args={"cxx": CXX_FLAGS + sanitizer_flags(), "nvcc": NVCC_FLAGS},
        extra_link_args=sanitizer_flags(),
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": OptionalBuild},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**extension())
