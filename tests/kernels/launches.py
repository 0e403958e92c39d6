"""Launches as they are on a GPU, printed as JSON: run in a process that does not interpret its kernels.

No GPU is needed: the driver, the device and the compiled kernel are stand-ins that note what they are given.
"""

from __future__ import annotations

import contextlib
import json
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
import triton.language as tl
from triton.runtime.jit import JITFunction

from fastdiff.kernels import launch, step
from fastdiff.kernels.normal import launch as normal_launch
from fastdiff.ops import triton as triton_ops

BATCH, SHAPE = 3, (3, 4, 32, 32)
LAYOUT = step.COLUMNS["cx"] | step.COLUMNS["po"] | step.COLUMNS["c0"] | step.COLUMNS["cz"]
compilations: list[Any] = []
launches: list[dict[str, Any]] = []


class Kernel:
    """A compiled kernel that notes its launches."""

    def __init__(self, made_for: launch.Launch) -> None:
        self.names = list(made_for.arguments)

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def run(*values: Any, stream: int) -> None:
            launches.append({**dict(zip(self.names, values, strict=True)), "stream": stream})

        return run


def compiled(made_for: launch.Launch) -> Kernel:
    """Stands in for the compiler."""
    compilations.append(made_for)
    return Kernel(made_for)


def arguments() -> dict[str, Any]:
    """A step on fresh memory."""
    return {
        "x": torch.zeros(SHAPE),
        "out": torch.zeros(SHAPE, dtype=torch.bfloat16),
        "table": torch.zeros(5, 4),
        "layout": LAYOUT,
        "row": torch.zeros(1, dtype=torch.int64).expand(BATCH),
        "key": torch.zeros(2, BATCH, dtype=torch.int64),
    }


def specialisation() -> dict[str, Any]:
    """What a step and `normal_` on "meta" tensors are compiled for."""
    meta = {name: value.to("meta") if name != "layout" else value for name, value in arguments().items()}
    meta["row"] = torch.zeros(1, dtype=torch.int64, device="meta").expand(BATCH)
    source = launch.source(step.launch(**meta))
    z, key, draw = torch.empty(2, 3, 7, device="meta"), *torch.zeros(3, 2, dtype=torch.int64, device="meta").split(2)
    odd = launch.source(normal_launch(z, key, draw[0], 1))
    names = list(odd.signature)
    return {
        "types": {name: kind for name, kind in source.signature.items() if kind != "constexpr"},
        "constants": {list(source.signature)[place]: value for (place,), value in source.constants.items()},
        "divisible": [list(source.signature)[place] for (place,) in source.attrs],
        "divisible if odd": [names[place] for (place,) in odd.attrs],
    }


def repeated() -> dict[str, Any]:
    """What is compiled and launched by calls that differ in memory, aliasing, alignment and batch."""
    driver = SimpleNamespace(get_current_device=lambda: -1, get_current_stream=lambda device: 77)
    launch.driver = SimpleNamespace(active=driver)
    launch._compile = compiled
    torch.cuda.device = lambda device: contextlib.nullcontext()
    result: dict[str, Any] = {}

    def called(name: str, call: dict[str, Any]) -> None:
        before = len(compilations), len(launches)
        step.step(**call)
        values = launches[-1]
        tensors = [key for key, value in call.items() if isinstance(value, torch.Tensor)]
        result[name] = {
            "compilations": len(compilations) - before[0],
            "launches": len(launches) - before[1],
            "right": all(values[key] == call[key].data_ptr() for key in tensors) and values["stream"] == 77,
            "kept": len(launch._kept),
        }

    first, second, third = arguments(), arguments(), arguments()
    called("first", first)
    called("again", second)
    called("other memory", third)
    called("the state is the output", {**third, "out": third["x"]})
    misaligned = torch.zeros(BATCH * 4096 + 1)[1:].view(SHAPE)
    called("misaligned", {**arguments(), "x": misaligned})
    called("other rows", {**arguments(), "row": torch.zeros(BATCH, dtype=torch.int64)})
    overlapping = torch.zeros(BATCH * 4096 + 8)
    clash = {"x": overlapping[:-8].view(SHAPE), "out": overlapping[8:].view(SHAPE)}
    apart = {"x": torch.zeros(SHAPE), "out": torch.zeros(SHAPE)}
    called("float32", {**arguments(), **apart})
    try:
        step.step(**{**arguments(), **clash})
    except ValueError as error:
        result["clash"] = str(error)
    return result


def unseen() -> list[str]:
    """The globals of kernels that Triton's cache on disk does not look at, so that it would not see them change."""
    found = set()
    for file in set(triton_ops.FILES.values()):
        for kernel in vars(import_module(f"fastdiff.kernels.{file}")).values():
            if isinstance(kernel, JITFunction):
                assert kernel.cache_key
                used = kernel.used_global_vals.items()
                found |= {f"{kernel.__name__}: {name}" for (name, _), (value, _) in used if not is_constant(value)}
    return sorted(found)


def is_constant(value: Any) -> bool:
    """Whether a value is part of the key of a kernel that reads it."""
    return isinstance(value, tl.constexpr)


if __name__ == "__main__":
    print(json.dumps({"specialisation": specialisation(), "repeated": repeated(), "unseen": unseen()}))
