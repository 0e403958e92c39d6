"""Adds the optional C++ and CUDA extension `fastdiff._C`; everything else about the package is in pyproject.toml."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

MACROS = [("TORCH_TARGET_VERSION", "0x020a000000000000")]
CXX_FLAGS = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-g0"]
# What decides the code of the kernels stands in a file of its own, which the inspection of that code reads too.
NVCC_FLAGS = [
    *shlex.split(Path("csrc/cuda/nvcc_flags.txt").read_text()),
    *("-Icsrc", "-Xcompiler", "-fPIC,-ffp-contract=off,-fvisibility=hidden"),
]
# Newer GPUs compile what they need from the last one's.
GPUS = ("80", "90", "100")


def warn(reason, part="C++ extension"):
    print(f"warning: fastdiff is built without its {part}: {reason}", file=sys.stderr, flush=True)


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


def run(*command):
    """Run a compiler; return what it said, or raise with its first error."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        errors = [line for line in done.stdout.splitlines() if "error" in line] or [f"it returned {done.returncode}"]
        raise RuntimeError(f"{Path(command[0]).name}: {errors[0]}")
    return done.stdout


def find_nvcc(torch, cuda_home):
    """Return the CUDA compiler; None where CUDA is not wanted: FASTDIFF_CUDA=1 or 0, else as torch was built."""
    wanted = os.environ.get("FASTDIFF_CUDA") or ("1" if torch.version.cuda else "0")
    if wanted == "0" or os.environ.get("FASTDIFF_SANITIZE"):
        return None
    nvcc = shutil.which("nvcc", path=f"{cuda_home}/bin" if cuda_home else None) or shutil.which("nvcc")
    if nvcc is None:
        warn("there is no nvcc; install the CUDA toolkit, or set CUDA_HOME", "CUDA kernels")
    return nvcc


def compile_cuda(nvcc, folder):
    """Compile csrc/cuda/*.cu; return the objects and the linker's arguments for the CUDA runtime."""
    known = run(nvcc, "--list-gpu-code").split()
    named = os.environ.get("FASTDIFF_GPUS")
    gpus = named.replace(" ", "").split(",") if named else [gpu for gpu in GPUS if f"sm_{gpu}" in known]
    if not gpus or not all(f"sm_{gpu}" in known for gpu in gpus):
        raise RuntimeError(f"{nvcc} does not know all of the GPUs {named or GPUS}; give FASTDIFF_GPUS=90 or the like")
    codes = [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in gpus]
    codes.append(f"-gencode=arch=compute_{gpus[-1]},code=compute_{gpus[-1]}")
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source):
        to = folder / f"{Path(source).stem}.o"
        run(nvcc, *NVCC_FLAGS, *codes, "-c", source, "-o", str(to))
        return str(to)

    sources = sorted(find("csrc/cuda/*.cu"), key=lambda source: "step" not in source)  # the longest first
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
        objects = list(pool.map(compile_one, sources))
    # The folders that nvcc itself links from.
    folders = re.findall(r'"(-L[^"]+)"', run(nvcc, "--dryrun", "-o", os.devnull, sources[0]))
    return objects, [*dict.fromkeys(folders), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]


def extension():
    """Return the arguments that make `setup` build the extension; none where it is not wanted or cannot be built."""
    sources = find("csrc/tensors/*.cpp", "csrc/cpu/*.cpp", *(["csrc/python/*.cpp"] if has_python_header() else []))
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
        """A build that fails is tried without CUDA, and else leaves a pure-Python package, tagged as one; it warns."""

        def finalize_options(self):
            super().finalize_options()
            self.force = True  # nobody but ninja would see that a header or a kernel changed
            self.nvcc = find_nvcc(torch, cpp_extension.CUDA_HOME)
            (module,) = self.extensions
            self.without_cuda = {
                name: list(getattr(module, name))
                for name in ("sources", "define_macros", "extra_objects", "extra_link_args")
            }

        def run(self):
            given = self.inplace, self.compiler
            try:
                super().run()
            except Exception as error:
                self.inplace, self.compiler = given
                part = "CUDA kernels" if self.nvcc else "C++ extension"
                warn(f"the build failed ({' '.join(str(error).split())}); the compiler's own words stand above", part)
                if self.nvcc:
                    self.nvcc = None
                    vars(self.extensions[0]).update(self.without_cuda)
                    self.run()
                else:
                    self.forget()

        def build_extensions(self):
            if self.nvcc:
                self.add_cuda(*compile_cuda(self.nvcc, Path(self.build_temp, "cuda")))
            super().build_extensions()

        def add_cuda(self, objects, link_args):
            (module,) = self.extensions
            module.sources += find("csrc/cuda/*.cpp")
            module.define_macros.append(("FASTDIFF_CUDA", None))
            module.extra_objects += objects
            module.extra_link_args += link_args

        def forget(self):
            """Remove what an earlier build left, which the Python code no longer matches, and become a pure package."""
            for unbuilt in self.extensions:
                Path(self.get_ext_fullpath(unbuilt.name)).unlink(missing_ok=True)
            self.extensions = []
            self.distribution.ext_modules = []
            wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
            if wheel is not None:
                wheel.root_is_pure = True

    module = cpp_extension.CppExtension(
        "fastdiff._C",
        sources,
        include_dirs=[str(Path("csrc").resolve())],
        define_macros=list(MACROS),
        extra_compile_args={"cxx": CXX_FLAGS + sanitizer_flags()},
        extra_link_args=sanitizer_flags(),
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": OptionalBuild},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**extension())
