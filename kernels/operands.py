"""Tensors as kernels see them: what is checked, what must be copied, and how a sample is cut into blocks.

Image tensors are [samples, ...]. A kernel reads and writes the elements of a sample one behind the other, so they must
be dense in logical C order; samples may lie anywhere (`out.chunk(2, dim=1)`). Other tensors are copied first, and what
was written is copied back.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.errors import InputError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MOST_ELEMENTS = 2**34  # of a sample: a 32-bit word counts its quads
MOST_ROWS = 65535  # programs along y
MANY_ELEMENTS = 2**22  # of a call: from here on there are more programs than a GPU runs at a time
LANES = 64 if torch.version.hip else 32  # threads of a warp
_MOST_BLOCK, _LEAST_BLOCK = 2048, 256


@dataclass(frozen=True)
class Blocks:
    """How the samples of a call are cut into programs: x counts the blocks of a sample, y and z the samples.

    Attributes:
        elements: of a sample.
        width: elements that are one behind the other in a thread, 4 or 8 (see `width`).
        block: elements of a program.
        grid: programs along x, y and z.
        num_warps: warps of a program.
    """

    elements: int
    width: int
    block: int
    grid: tuple[int, int, int]
    num_warps: int

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told of them."""
        return {"num_warps": self.num_warps}

    @property
    def tile(self) -> int:
        """Elements that a program computes at a time where `tiled_blocks` cut them: 8 a thread."""
        return min(self.block, 8 * LANES * self.num_warps)

    @property
    def even(self) -> bool:
        """Whether the blocks fill a sample, so that no masks are needed."""
        return self.elements % self.block == 0

    @property
    def many(self) -> bool:
        """Whether z counts samples too; some programs are beyond the last sample then."""
        return self.grid[2] > 1


@functools.lru_cache(maxsize=1024)
def blocks(samples: int, elements: int, width: int) -> Blocks:
    """Cut samples into blocks, 16 elements a thread, but fewer where there would be few programs."""
    most = _MOST_BLOCK if samples * elements >= 2**20 else _MOST_BLOCK // 2
    block = max(_LEAST_BLOCK, min(most, 1 << max(elements - 1, 0).bit_length()))
    return Blocks(elements, width, block, grid(samples, elements, block), max(1, block // (16 * LANES)))


@functools.lru_cache(maxsize=1024)
def tiled_blocks(samples: int, elements: int, width: int, tiles: int) -> Blocks:
    """Cut samples into blocks of tiles of 8 elements a thread, for a kernel that computes them one after the other.

    Tiles share what is computed once per program; where there are few programs, each tile is one, to be done sooner.
    """
    tiles = tiles if samples * elements >= MANY_ELEMENTS else 1
    tile = 8 * min(256 // tiles, 128)
    while elements % tile == 0 and elements % (tiles * tile):
        tiles //= 2
    block = max(_LEAST_BLOCK, min(tiles * tile, 1 << max(elements - 1, 0).bit_length()))
    return Blocks(elements, width, block, grid(samples, elements, block), max(1, block // (tiles * 8 * LANES)))


def grid(samples: int, elements: int, block: int) -> tuple[int, int, int]:
    """Return the programs along x, which counts blocks, and y and z, which count samples.

    Raises:
        InputError: they are more than a launch can have.
    """
    rows = max(1, min(samples, MOST_ROWS))
    programs = -(-elements // block), rows, -(-samples // rows)
    if math.prod(programs) >= 2**31:
        raise InputError(f"{samples} samples are too many for one call: pass them in batches")
    return programs


def width(*tensors: Tensor | None) -> int:
    """How many elements of a thread lie one behind the other, so that 16 bytes of each tensor are one access."""
    return 8 if any(tensor is not None and tensor.element_size() == 2 for tensor in tensors) else 4


def elements_of(like: Tensor) -> int:
    """How many elements a sample has.

    Raises:
        InputError: they are too many, or there is no dimension of samples.
    """
    if like.ndim == 0:
        raise InputError("image tensors must have at least 1 dimension, the samples first")
    elements = math.prod(like.shape[1:])
    if elements > MOST_ELEMENTS:
        raise InputError("a sample can have at most 2^34 elements")
    return elements


def check_image(
    name: str, tensor: Tensor, like: Tensor, dtypes: Sequence[torch.dtype] = FLOATS, branches: int = 1
) -> None:
    """Refuse a tensor without the shape of `like` (`branches` times its samples), its device and one of `dtypes`."""
    if tensor.dtype not in dtypes:
        raise InputError(f"{name} must be {_names(dtypes)} for the GPU kernels, got {_name(tensor.dtype)}")
    if tensor.shape != like.shape and tuple(tensor.shape) != (branches * like.shape[0], *like.shape[1:]):
        raise InputError(
            f"{name} must have the shape of the other image tensors of the call, {tuple(like.shape)}, "
            f"got {tuple(tensor.shape)}"
        )
    check_device(name, tensor, like)


def check_device(name: str, tensor: Tensor, like: Tensor) -> None:
    """Refuse a tensor on another device than `like`."""
    if tensor.device != like.device:
        raise InputError(f"{name} is on {tensor.device} and the other tensors of the call on {like.device}")


def per_sample(name: str, tensor: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return one number for each sample of `like`, dense or (stride 0) one for all of them."""
    if tensor.dtype != dtype or tensor.shape != like.shape[:1]:
        wanted = f"{_name(dtype)} with one number for each of {like.shape[0]} samples"
        raise InputError(f"{name} must be {wanted}, got {_name(tensor.dtype)} {tuple(tensor.shape)}")
    check_device(name, tensor, like)
    return tensor if tensor.stride(0) in (0, 1) else tensor.contiguous()


def dense_per_sample(name: str, tensor: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return one number for each sample of `like`, one behind the other; None where there are none."""
    return None if tensor is None else per_sample(name, tensor, like, dtype).contiguous()


def keys(key: Tensor, like: Tensor) -> Tensor:
    """Return whose noise to draw, dense int64 [2, samples]: seeds and sample indices."""
    samples = like.shape[0]
    if key.dtype != torch.int64 or key.shape != (2, samples):
        got = f"{_name(key.dtype)} {tuple(key.shape)}"
        raise InputError(f"key must be int64 [2, {samples}]: seeds and sample indices; got {got}")
    check_device("key", key, like)
    return key if key.is_contiguous() else key.contiguous()


def table(table: Tensor, like: Tensor, columns: int) -> Tensor:
    """Return a table, dense float32 [rows, columns]."""
    if table.dtype != torch.float32 or table.ndim != 2 or table.shape[1] != columns:
        got = f"{_name(table.dtype)} {tuple(table.shape)}"
        raise InputError(f"table must be float32 [rows, {columns}] for this call, got {got}")
    check_device("table", table, like)
    return table if table.is_contiguous() else table.contiguous()


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements of each sample lie one behind the other in C order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for size, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def are_dense(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all of these that are given are dense."""
    return all(tensor is None or is_dense(tensor) for tensor in tensors)


def dense(tensor: Tensor) -> Tensor:
    """Return a tensor whose samples are dense: itself, or a copy."""
    return tensor if is_dense(tensor) else tensor.contiguous()


def sample_stride(tensor: Tensor | None, elements: int) -> int | None:
    """From one sample to the next, in elements; None where samples lie one behind the other."""
    if tensor is None:
        return None
    stride: int = tensor.stride(0)
    return None if stride == elements or tensor.shape[0] == 1 else stride


def check_own_memory(name: str, tensor: Tensor | None) -> None:
    """Refuse to write a tensor whose elements share memory: each stride must step over all that lies within."""
    if tensor is None or tensor.is_contiguous() or tensor.numel() == 0:
        return
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            raise InputError(f"{name} is written, so its elements must not share memory: pass a copy")
        reach += stride * (size - 1)


def check_apart(written_name: str, written: Tensor | None, read_name: str, read: Tensor | None) -> None:
    """Refuse to write what is still to be read, other than element for element. The samples of both are dense."""
    if written is None or read is None:
        return
    begin, other = written.data_ptr(), read.data_ptr()
    if begin == 0 or other == 0:  # "meta" tensors have no memory
        return
    if begin == other and written.dtype == read.dtype and written.stride() == read.stride():
        return
    if begin < other + extent(read) and other < begin + extent(written) and _collide(written, read):
        raise InputError(
            f"{written_name} is written and shares memory with {read_name} other than element for element: pass a copy"
        )


def extent(tensor: Tensor) -> int:
    """Bytes from the first to the last that a tensor's elements take."""
    last = sum(stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return (last + 1) * tensor.element_size()


def _collide(written: Tensor, read: Tensor) -> bool:
    """Whether elements are shared; samples that lie between each other (`out.chunk(2, dim=1)`) do not share any."""
    stride, size = written.stride(0), written.element_size()
    if read.dtype != written.dtype or read.stride(0) != stride or stride == 0:
        return True
    elements = math.prod(written.shape[1:])
    distance, odd = divmod(read.data_ptr() - written.data_ptr(), size)
    return odd != 0 or distance % stride < elements or -distance % stride < elements


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(dtypes: Sequence[torch.dtype]) -> str:
    *others, last = map(_name, dtypes)
    return f"{', '.join(others)} or {last}" if others else last
