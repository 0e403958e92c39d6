"""Runs every op of both GPU backends once, at odd sizes, and compares it with the cpu backend.

    python -m tests.gpu.every_op

It is small, so that compute-sanitizer can watch it.
"""

from __future__ import annotations

import sys

import torch

from fastdiff.ops import dispatch, native, schema
from fastdiff.plan import FAST_NORMALS
from tests.gpu.cases import GPU, assert_alike, on_cpu, to_cpu
from tests.kernels.calls import moved
from tests.ops.cpu import OPS, example, run

SHAPES = ((3, 5, 7, 3), (2, 3, 33, 32), (2, 1, 1, 1))


def main() -> int:
    """Return the number of ops that gave something else than the cpu backend."""
    reason = native.missing()
    if reason is not None or not torch.cuda.is_available():
        sys.exit(f"error: {reason or 'this needs a CUDA device, and torch sees none'}")
    wrong = 0
    for backend in schema.GPU_BACKENDS:
        ops = dispatch.backend(backend, GPU)
        for name in OPS:
            for shape, dtype in zip(SHAPES, (torch.float32, torch.bfloat16, torch.float16), strict=True):
                call = example(name, shape, dtype)
                found, wanted = to_cpu(run(ops, name, moved(call, GPU))), on_cpu(name, call)
                try:
                    assert_alike(name, found, wanted)
                except AssertionError as error:
                    wrong += 1
                    print(f"{backend} {name} {shape} {dtype}: {error}")
        fast = example("step", SHAPES[0])
        run(ops, "step", moved({**fast, "layout": fast["layout"] | FAST_NORMALS}, GPU))
    torch.cuda.synchronize()
    print(f"{wrong} calls differ from the cpu backend" if wrong else "every op gives what the cpu backend gives")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
