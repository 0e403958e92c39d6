#!/usr/bin/env bash
# Builds fastdiff with CUDA, tests it on the GPU, looks for bad memory accesses and measures it, in under nine minutes.
#
#     bench/gpu.sh [OUT]      OUT is the folder for gpu.json, gpu.md, gpu.png and gpu.txt; bench/results if not given
#
# Needs a CUDA device, nvcc, and a Python (PYTHON, or python3) with PyTorch 2.11 or later, pytest and what fastdiff
# depends on; no network. Peers that Python cannot import are left out. WHEELS can name a folder of wheels, those of
# diffusers and of whatever else Python lacks, which are unpacked for this run.
# A part that fails or runs out of time does not stop the others. The exit status counts those parts.
set -uo pipefail
out=$(realpath -m -- "${1:-$(dirname -- "${BASH_SOURCE[0]}")/results}")
wheels=${WHEELS:+$(realpath -m -- "$WHEELS")}
cd "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit
python=${PYTHON:-python3}
limit=530 # seconds in all
failed=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

unset TRITON_INTERPRET # kernels are compiled here

if [[ -n $wheels ]]; then
    timeout -k 10 60 "$python" -m pip install -q --no-index --no-deps --no-compile --target "$scratch/site" "$wheels"/*.whl ||
        failed=1
    export PYTHONPATH=$scratch/site${PYTHONPATH:+:$PYTHONPATH}
fi

check() { # the machine, and below it the architecture of its GPU, empty where nvcc does not know it
    "$python" - <<'PYTHON'
import importlib.util
import os
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version

needed = {"torch": "torch", "numpy": "numpy", "pytest": "pytest", "setuptools": "setuptools", "triton": "triton",
          "safetensors": "safetensors", "tqdm": "tqdm", "typer": "typer", "PIL": "pillow"}
missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
if missing:
    sys.exit(f"error: bench/gpu.sh needs {', '.join(missing)} in {sys.executable}; set PYTHON to another Python, "
             "or WHEELS to a folder that has them")

if int(version("setuptools").split(".")[0]) < 77:  # which first knew the licence as pyproject.toml writes it
    sys.exit(f"error: bench/gpu.sh needs setuptools 77 or later, not {version('setuptools')}; WHEELS can bring it")

import torch
from torch.utils.cpp_extension import CUDA_HOME

if not torch.cuda.is_available():
    sys.exit(f"error: bench/gpu.sh needs a CUDA device, and torch {torch.__version__} sees none")
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
    sys.exit(f"error: bench/gpu.sh needs torch 2.11 or later, not {torch.__version__}")
nvcc = shutil.which("nvcc", path=f"{CUDA_HOME}/bin{os.pathsep}{os.environ['PATH']}")
if nvcc is None:
    sys.exit("error: bench/gpu.sh needs nvcc: put it into PATH, or set CUDA_HOME")

import triton

print(f"machine: {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, torch {torch.__version__}, triton "
      f"{triton.__version__}, Python {sys.version.split()[0]}; {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC")
architecture = "{}{}".format(*torch.cuda.get_device_capability())
known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
print(architecture if f"sm_{architecture}" in known else "")
PYTHON
}
checked=$(check) || exit
{ read -r machine && read -r architecture; } <<<"$checked"$'\n'
mkdir -p -- "$out" || exit
: >"$out/gpu.txt"

note() { # a line of the summary
    echo "== $1"
    echo "$1" >>"$out/gpu.txt"
}

note "$machine"
((failed)) && note "wheels: FAILED, they could not be unpacked"

part() { # its name, how many seconds it may take, its command
    local name=$1 seconds=$2 begun=$SECONDS status outcome
    shift 2
    ((seconds > limit - SECONDS)) && seconds=$((limit - SECONDS))
    if ((seconds < 10)); then
        note "$name: no time was left"
        ((failed += 1))
        return
    fi
    echo "== $name: at most $seconds s"
    # Interrupted, pytest and the benchmark still say what they have found.
    timeout -s INT -k 10 "$seconds" "$@" 2>&1 | tee "$scratch/part"
    status=${PIPESTATUS[0]}
    case $status in
        0) outcome=passed ;;
        124 | 137) outcome="OUT OF TIME" ;;
        *) outcome="FAILED with status $status" ;;
    esac
    ((status == 0)) || ((failed += 1))
    note "$name: $outcome in $((SECONDS - begun)) s: $(grep -v '^ *$' "$scratch/part" | tail -n 1 | cut -c 1-200)"
}

# Other versions than the pinned ones may warn about themselves: no warning is an error here. The other options stand
# in pyproject.toml, for plugins that need not be here.
tests=("$python" -m pytest -o addopts= --import-mode=importlib --strict-markers -ra -q -W default -p no:benchmark -m gpu)
"$python" -c "import xdist" 2>/dev/null && tests+=(-n 6)

export FASTDIFF_CUDA=1
[[ -n $architecture ]] && export FASTDIFF_GPUS=${FASTDIFF_GPUS:-$architecture}
# The metadata stand in for an installation: the package looks up its version.
part "build" 150 bash -c '"$0" setup.py -q egg_info build_ext --inplace && "$0" -c "$1"' "$python" "
from fastdiff.ops import dispatch
missing = [f'{name}: {reason}' for name, reason in dispatch.missing().items() if reason]
raise SystemExit('; '.join(missing) or print('every backend is there'))"
part "tests" 130 "${tests[@]}" tests/gpu
part "every op" 60 "$python" -m tests.gpu.every_op
# The last entry may take a minute longer; sanitizers and the tests of the Triton kernels take what is left.
seconds=$((limit - SECONDS - 40))
((seconds > 240)) && seconds=240
part "benchmark" "$seconds" "$python" -m fastdiff.bench.gpu --out "$out/gpu.json" --seconds $((seconds - 60))
if "$python" -c "import diffusers, transformers" 2>/dev/null; then
    part "pipelines" 60 "$python" -m fastdiff.bench.pipelines --out "$out" --device cuda --rounds 3
else
    note "pipelines: skipped, they need diffusers and transformers"
fi
sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null)
declare -A options=([memcheck]="--report-api-errors no" [racecheck]="") # torch asks for things that may not be there
for tool in memcheck racecheck; do
    if [[ -n $sanitizer ]]; then
        # Without a cache each tensor is an allocation of its own, whose end is guarded.
        part "$tool" 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 1 \
            ${options[$tool]} --target-processes application-only "$python" -m tests.gpu.every_op
    else
        note "$tool: skipped, there is no compute-sanitizer"
    fi
done
if "$python" -c "import hypothesis" 2>/dev/null; then
    part "tests of the kernels" "$limit" "${tests[@]}" tests/kernels
else
    note "tests of the kernels: skipped, they need hypothesis"
fi

echo "== in all $SECONDS s, $failed parts failed:"
cat "$out/gpu.txt"
exit "$failed"
