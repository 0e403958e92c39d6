"""Launching a Triton kernel: what it is specialised on, its compilation, and a call with little Python in it.

An op makes a `Launch`, and `run` executes it. A kernel is compiled once for each set of what changes its code: the
constants, the tensors that are there, their dtypes, and what 16 divides. `source` is what is compiled, for the GPU at
hand and ahead of time alike.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource
from triton.runtime.driver import driver

from fastdiff.errors import BackendError
from fastdiff.kernels.interpreter import INTERPRETED
from fastdiff.kernels.operands import extent

OPTIONS: Mapping[str, Any] = {"enable_fp_fusion": False}  # an fma stands where one is written
Argument = Tensor | int | float | None

_DIVISOR = 16  # bytes of the widest access; elements of a whole number, as Triton has it
_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}
_compiled: dict[Hashable, Any] = {}
_kept: dict[Hashable, _Kept] = {}
_MOST_KEPT = 1024


@dataclass(frozen=True)
class Launch:
    """One call of a kernel.

    Attributes:
        kernel: a function decorated with `triton.jit`.
        grid: programs along x, y and z.
        arguments: the kernel's arguments in its order, constants among them. All tensors are on one device; the first
            one names it.
        options: of the compiler, besides `OPTIONS`; "num_warps" mostly.
        apart: pairs of arguments, one written and one read, that share no memory, or share it element for element.
    """

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Argument]
    options: dict[str, int] = field(default_factory=dict)
    apart: tuple[tuple[str, str], ...] = ()


def run(launch: Launch) -> None:
    """Execute a launch on the device of its tensors, on the current stream, and return at once.

    Raises:
        BackendError: the kernel does not compile, or does not load.
    """
    if 0 in launch.grid:
        return
    if INTERPRETED:
        with np.errstate(all="ignore"):  # NumPy warns of overflow and NaN, which a GPU computes in silence
            launch.kernel[launch.grid](**launch.arguments)
        return
    device = _device(launch)
    with torch.cuda.device(device):
        values = list(_values(launch))
        _compiled_for(launch, device)[launch.grid](*values, stream=driver.active.get_current_stream(device))


def call(make: Callable[..., Launch | None], *arguments: Tensor | int | None) -> bool:
    """Run `make(*arguments)`; return whether it made a launch.

    What it made is kept, and run again for arguments that differ in nothing but the place of their memory: a launch
    depends on sizes, strides, dtypes and alignment alone. So `make` can check all that it likes.
    """
    key: list[Hashable] = [make]
    addresses: list[int] = []
    for argument in arguments:
        if argument is None or isinstance(argument, int):
            addresses.append(0)
            key.append(argument)
        else:
            address = argument.data_ptr()
            addresses.append(address)
            key += (argument.shape, argument.stride(), argument.dtype, argument.get_device(), address % _DIVISOR == 0)
    kept = _kept.get(tuple(key))
    if kept is None or kept.overlap(addresses) or not kept.run(addresses):
        launch = make(*arguments)
        if launch is None:
            return False
        run(launch)
        if kept is None and not INTERPRETED:
            _keep(tuple(key), launch, arguments)
    return True


@dataclass(frozen=True)
class _Kept:
    """A launch whose tensors are those arguments of a call that `tensors` names, by place in the kernel's arguments."""

    compiled: Any
    device: int
    values: list[Any]
    tensors: list[tuple[int, int]]
    apart: list[tuple[int, int, int, int]]  # two arguments of the call and their sizes in bytes

    def overlap(self, addresses: list[int]) -> bool:
        """Whether tensors lie such that a closer look must tell whether they share memory."""
        for a, size_a, b, size_b in self.apart:
            if addresses[a] < addresses[b] + size_b and addresses[b] < addresses[a] + size_a:
                return True
        return False

    def run(self, addresses: list[int]) -> bool:
        """Launch with tensors at these addresses; return whether the current device is theirs."""
        if driver.active.get_current_device() != self.device:
            return False
        values = self.values.copy()
        for place, argument in self.tensors:
            values[place] = addresses[argument]
        self.compiled(*values, stream=driver.active.get_current_stream(self.device))
        return True


def _keep(key: Hashable, launch: Launch, arguments: Sequence[Tensor | int | None]) -> None:
    if 0 in launch.grid:
        return
    places = {id(argument): place for place, argument in enumerate(arguments) if isinstance(argument, Tensor)}
    tensors = {name: value for name, value in launch.arguments.items() if isinstance(value, Tensor)}
    twice = len(places) < sum(isinstance(argument, Tensor) for argument in arguments)
    if twice or any(id(tensor) not in places for tensor in tensors.values()):
        return  # it was made with a copy, or does not tell two arguments apart
    device = _device(launch)
    order = list(launch.arguments)
    if len(_kept) >= _MOST_KEPT:
        _kept.clear()
    _kept[key] = _Kept(
        _compiled_for(launch, device)[launch.grid],
        device,
        list(_values(launch)),
        [(order.index(name), places[id(tensor)]) for name, tensor in tensors.items()],
        [
            (places[id(tensors[a])], extent(tensors[a]), places[id(tensors[b])], extent(tensors[b]))
            for a, b in launch.apart
            if a in tensors and b in tensors
        ],
    )


def source(launch: Launch) -> ASTSource:
    """What `triton.compile` compiles for a launch; the tensors may lie anywhere, "meta" included."""
    constants = _constants(launch.kernel)
    types, constexprs, attributes = {}, {}, {}
    for place, (name, value) in enumerate(launch.arguments.items()):
        types[name] = "constexpr" if constants[place] else _type_of(value)
        if types[name] == "constexpr":
            constexprs[(place,)] = value
        elif _divisible(value):
            attributes[(place,)] = [["tt.divisibility", _DIVISOR]]
    return ASTSource(launch.kernel, types, constexprs, attributes)


def options(launch: Launch) -> dict[str, Any]:
    """The options with which a launch is compiled."""
    return {**OPTIONS, **launch.options}


def _device(launch: Launch) -> int:
    tensor = next(value for value in launch.arguments.values() if isinstance(value, Tensor))
    return tensor.get_device()


def _values(launch: Launch) -> Iterator[Any]:
    """The arguments as the launcher takes them: addresses for tensors."""
    for value in launch.arguments.values():
        yield value.data_ptr() if isinstance(value, Tensor) else value


def _compiled_for(launch: Launch, device: int) -> Any:
    """The kernel, compiled on the first launch with these constants, types and divisors."""
    key: list[Hashable] = [launch.kernel, device, *launch.options.items()]
    for constant, value in zip(_constants(launch.kernel), launch.arguments.values(), strict=True):
        key.append(value if constant or value is None else (_type_of(value), _divisible(value)))
    kernel = _compiled.get(tuple(key))
    if kernel is None:
        kernel = _compiled[tuple(key)] = _compile(launch)
    return kernel


@functools.cache
def _constants(kernel: Any) -> tuple[bool, ...]:
    """Which arguments of a kernel are constants to the compiler."""
    return tuple(parameter.is_constexpr for parameter in kernel.params)


def _type_of(value: Argument) -> str:
    if value is None:
        return "constexpr"
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _divisible(value: Argument) -> bool:
    if isinstance(value, Tensor):
        return value.data_ptr() % _DIVISOR == 0
    return isinstance(value, int) and value % _DIVISOR == 0


def _compile(launch: Launch) -> Any:
    try:
        compiled = triton.compile(source(launch), options=options(launch))
        compiled[launch.grid]  # makes its launcher, which takes a C compiler, and loads it
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BackendError(
            f"the Triton kernel {launch.kernel.__name__} does not compile or load here ({reason}); "
            f"use backend='cuda' or backend='eager'"
        ) from error
    return compiled
