"""Which kernel of csrc/cuda a case runs, and how much of a sample one of its threads takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fastdiff.bench.code.cases import Case
from fastdiff.plan import NEUTRAL

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
TURNS = 8  # vectors of a thread: 1 to 8 by `blocks_for` in launch.cu, 8 where x has 100 MB on 132 multiprocessors

_NORMALS = {"none": 0, "exact": 1, "fast": 2}
_STORAGE = {"fp32": "float32", "bf16": "bfloat16"}
_MIXED = "StorageE3E"  # whole vectors of 8, their dtypes known at run time


@dataclass(frozen=True)
class CudaKernel:
    """A kernel of csrc/cuda.

    Attributes:
        source: the file.
        name: a regular expression that its mangled name matches, and no other of the file.
        vector: elements that a thread takes at once.
        turns: how many vectors it takes.
    """

    source: str
    name: str
    vector: int = 8
    turns: int = TURNS


_KERNELS = {
    "normal_": CudaKernel("noise.cu", f"VectorBody.*{_MIXED}.*DrawNormals"),
    "q_sample": CudaKernel("noise.cu", f"VectorBody.*{_MIXED}.*NoiseData.*Lb0E"),
    "noise_loss": CudaKernel("noise.cu", f"LossPart.*{_MIXED}Lb0E", turns=1),
    "noise_loss, target": CudaKernel("noise.cu", f"LossPart.*{_MIXED}Lb1E", turns=1),
    "noise_loss_backward": CudaKernel("noise.cu", f"VectorBody.*{_MIXED}.*LossGradient.*Lb0E"),
    "noise_loss_backward, target": CudaKernel("noise.cu", f"VectorBody.*{_MIXED}.*LossGradient.*Lb1E"),
    "guidance_rescale": CudaKernel("reductions.cu", f"RescalePart.*{_MIXED}", turns=1),
    "inner_products": CudaKernel("reductions.cu", f"ProductsPart.*{_MIXED}", turns=1),
    "threshold": CudaKernel("reductions.cu", f"CountDigit.*{_MIXED}.*Formula"),
}


def kernel_of(case: Case) -> CudaKernel:
    """Return the first kernel that a case launches."""
    return _step(case) if case.op == "step" else _KERNELS[case.name.removesuffix(f", {case.dtype}")]


def _step(case: Case) -> CudaKernel:
    columns = sum(1 << k for k, name in enumerate(NEUTRAL) if name in case.columns and name != "cz")
    draws, normals = int(case.normals != "none"), _NORMALS[case.normals]
    name = f"FormulaILm{columns}E.*Lb{draws}E.*NormalsE{normals}E"
    return CudaKernel(f"step_{_STORAGE[case.dtype]}.cu", name, vector=8 if case.dtype == "bf16" else 4)


def flags() -> list[str]:
    """Return nvcc's flags, those of setup.py."""
    return [*re.split(r"\s+", (SOURCES / "cuda" / "nvcc_flags.txt").read_text().strip()), f"-I{SOURCES}"]
