"""What a case consists of: work to be done once, and for each peer a job that does it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.errors import BackendError, FastdiffError
from fastdiff.ops import dispatch, schema

SEED = 5
CPU = torch.device("cpu")
Tensors = dict[str, Tensor]


class Unavailable(FastdiffError):
    """A peer cannot take part; the message says why and stands where its time would."""


class WrongResult(FastdiffError):
    """A peer's result is not what it should be; the message stands where its time would."""


@dataclass(frozen=True)
class Job:
    """How one peer does the work.

    Attributes:
        call: does it once.
        read: names the tensors of the result, given what `call` returned.
        expected: the result in float64, given the noise that was drawn, or None.
        noise: what `call` draws after `torch.manual_seed(SEED)`, drawn again; None if the work takes no noise.
        hides_noise: it draws other noise than that, which nothing can draw again.
        computes: the dtype of its arithmetic.
        within: the setting in which it is called, an instruction set for example.
        repeats: how often one call does the work; its time counts for one.
        bits: the result to the last bit, if it is known; it counts instead of `expected`.
        tolerance: largest error relative to the largest value; None is that of one step in `computes`.
        of_network: the first argument of `call` is a network, which is what `torch.compile` should compile.
    """

    call: partial[Any]
    read: Callable[[Any], Tensors]
    expected: Callable[[Tensor | None], Tensors]
    noise: Callable[[], Tensor] | None = None
    hides_noise: bool = False
    computes: torch.dtype = torch.float32
    within: Callable[[], AbstractContextManager[object]] = nullcontext
    repeats: int = 1
    bits: Callable[[], Tensors] | None = None
    tolerance: float | None = None
    of_network: bool = False


class Work(ABC):
    """The work of a case on one shape and dtype, with its inputs.

    Attributes:
        elements: numbers in one image tensor.
        traffic: bytes that cross the memory bus at least, if every input is read once and every output written once.
        device: where its tensors are.
        gradients: whether autograd has to be on.
        memory: whether what a call allocates is counted too.
    """

    elements: int
    traffic: int
    device: torch.device = CPU
    gradients = False
    memory = False

    @abstractmethod
    def jobs(self) -> Mapping[str, Callable[[], Job]]:
        """Return how to make each peer's job. Making one raises Unavailable where the peer is missing."""

    def restore(self) -> None:  # noqa: B027 (work that changes no input has nothing to restore)
        """Put inputs that are overwritten back to where they started."""


def backend(name: str, device: torch.device) -> dispatch.Backend:
    """Return the ops of a backend. Raises Unavailable if it is missing."""
    try:
        return dispatch.backend(name, device)
    except BackendError as error:
        raise Unavailable(str(error)) from None


def with_gpu_backends(make: Callable[[str], Job], device: torch.device) -> dict[str, Callable[[], Job]]:
    """Return how to make fastdiff's job, given a backend's name: by the one that it chooses, and on GPUs by each."""
    names = {"fastdiff": "auto"} | ({name: name for name in schema.GPU_BACKENDS} if device.type == "cuda" else {})
    return {peer: partial(make, name) for peer, name in names.items()}


def images(shape: tuple[int, ...], dtype: torch.dtype, seed: int, device: torch.device = CPU) -> Tensor:
    """Return normals that bf16 holds exactly, so that every peer starts from the same numbers whatever its dtype is."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).bfloat16().to(dtype)


def noise_key(batch: int, device: torch.device = CPU) -> Tensor:
    """Return seed and sample indices for the ops, int64 [2, batch]."""
    return torch.stack([torch.full((batch,), SEED), torch.arange(batch)]).to(device)


def philox(shape: tuple[int, ...], stream: str, draw: int, device: torch.device = CPU) -> Tensor:
    """Return fastdiff's noise, float32 of `shape`. Raises WrongResult if its first or last sample is not to the letter.

    Those two are compared with the specification in plain torch, which is too slow for all of them.
    """
    z = fd.noise.normal(shape, SEED, step=draw, stream=stream, device=device)
    ends = [0, shape[0] - 1]
    exact = fd.noise.normal((2, *shape[1:]), SEED, index=ends, step=draw, stream=stream, backend="eager")
    if not torch.equal(z[ends].cpu(), exact):
        raise WrongResult("the noise has other bits than the specification")
    return z
