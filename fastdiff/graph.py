"""Whole sampling loops as CUDA graphs: `fastdiff.sample(..., graph=True)` captures one and replays it from then on.

A replay reads new seeds, sample indices, conditions, guidance scales and start states; everything else shapes the
graph, and another value of it captures another one. The weights may change in place; a module whose parameters were
replaced is captured again. What the model's Python code did while it was captured is done at every replay: other
objects that it reads, and switches of torch such as the precision of matrix products, must stay, or call `clear`.

The graphs of a model end with it: keep a function or a `partial` instead of making it for each call. They hold the
memory that the model takes in between, the newest `KEPT` of each model, and every launch of every row: they are for
plans of tens of rows. Calls from several threads take turns.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from fastdiff.errors import BackendError, FastdiffError, InputError
from fastdiff.guidance import Model
from fastdiff.loop import Inputs, Loop, Setup

KEPT = 4
_WARM_UP_ROWS = 3  # as torch's own tools do before they capture


class Recording(Protocol):
    """Work of a device that can be done again."""

    def turn(self, memory: Iterable[Tensor]) -> AbstractContextManager[None]:
        """What is launched meanwhile comes after the turns before, whatever streams they were on.

        The memory is nobody else's until that is done, even if it is given back before.
        """

    def replay(self) -> None:
        """Launch the work."""


class Recorder(Protocol):
    """What records work."""

    def missing(self, device: torch.device) -> str | None:
        """Return why nothing can be recorded on a device, or None."""

    def record(self, device: torch.device, warm_up: Callable[[], None], work: Callable[[], None]) -> Recording:
        """Do the warm-up, then record the work without doing it."""


class CudaRecorder:
    """Records CUDA graphs."""

    def missing(self, device: torch.device) -> str | None:
        return None if device.type == "cuda" else f"graph=True needs a CUDA device, and this loop is on {device}"

    def record(self, device: torch.device, warm_up: Callable[[], None], work: Callable[[], None]) -> Recording:
        with torch.cuda.device(device):
            # What is made at a first call (handles, workspaces, compiled kernels) cannot be made during a capture.
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(stream):
                    warm_up()
            finally:
                torch.cuda.current_stream().wait_stream(stream)
            graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
            try:
                # The outer context also leaves the stream where ending the capture fails.
                with torch.cuda.stream(stream), _own_workspaces(), _capture(graph, stream, pool):
                    work()
            except RuntimeError as error:
                _recover(device, stream, pool)
                first = _first(error)
                if isinstance(first, (FastdiffError, torch.OutOfMemoryError)) or "captur" not in str(first):
                    raise first from None  # the model's own
                raise _not_capturable(str(first).partition("\n")[0]) from error
            return _CudaRecording(graph, device)


class _CudaRecording:
    def __init__(self, graph: torch.cuda.CUDAGraph, device: torch.device) -> None:
        self.graph, self.device = graph, device
        self.done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def turn(self, memory: Iterable[Tensor]) -> Iterator[None]:
        stream = torch.cuda.current_stream(self.device)
        for tensor in memory:
            tensor.record_stream(stream)
        stream.wait_event(self.done)
        try:
            yield
        finally:
            self.done.record(stream)

    def replay(self) -> None:
        self.graph.replay()


def _capture(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any) -> AbstractContextManager[None]:
    # Other threads may go on to allocate memory, which would break a capture in global mode.
    return torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let matrix products take their workspaces anew meanwhile: from the graph's memory, where nobody frees them."""
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


def _recover(device: torch.device, stream: torch.cuda.Stream, pool: Any) -> None:
    """Put right what torch leaves behind if a capture cannot be ended.

    Its allocator still waits for the end, and its random generator still counts as captured until another capture.
    Where the capture was ended and something else failed, the first line finds nothing to do and raises.
    """
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
        with torch.cuda.stream(stream), _capture(torch.cuda.CUDAGraph(), stream, torch.cuda.graph_pool_handle()):
            torch.zeros(1, device=device)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where a model waits for the device, at the line that does.

    A capture would fail there too, but with an error that names no line and leaves torch to be put right. It is what
    refuses what is not seen here, such as a write through a mask.
    """

    supports_higher_order_operators = True
    _READS = frozenset((torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))
    _COPY = (torch.ops.aten._to_copy, torch.ops.aten.copy_)

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if self._reads(func, args) and any(value.device == self.device for value in given):
            raise _not_capturable(f"{func} waits for the device")
        result = func(*args, **kwargs)
        copies = func.overloadpacket in self._COPY and not kwargs.get("non_blocking", args[-1] is True)
        if copies and given[-1].device != result.device:
            raise _not_capturable(f"{func} from {given[-1].device} to {result.device} waits for the device")
        return result

    def _reads(self, func: torch._ops.OpOverload, args: Any) -> bool:
        """Whether an op reads values on the host, as an index does only for a mask."""
        if func.overloadpacket is torch.ops.aten.index:
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        return not self._READS.isdisjoint(func.tags)


class _Watched:
    """A model that is watched, and its ways to evaluate branches with it."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model, self.device = model, device

    def __call__(self, *arguments: Any, **condition: Any) -> Tensor:
        with _Watch(self.device):
            return self.model(*arguments, **condition)

    def __getattr__(self, name: str) -> _Watched:
        return _Watched(getattr(self.model, name), self.device)


def _first(error: BaseException) -> BaseException:
    """Return what went wrong first: ending a broken capture fails too, and says less."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error


def _not_capturable(reason: str) -> InputError:
    return InputError(
        f"the loop cannot be captured as a CUDA graph: {reason}; leave .item(), .cpu(), conditions on values and "
        "whatever else needs them on the host out of the model, or use graph=False"
    )


@dataclass(frozen=True)
class _Captured:
    loop: Loop
    recording: Recording

    def run(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        with self.recording.turn(self.loop.memory()):
            self.loop.inputs.fill(inputs)
            self.recording.replay()
            # The next replay writes into the same memory.
            first_bad = self.loop.first_bad
            return self.loop.x.clone(), None if first_bad is None else first_bad.clone()


recorder: Recorder = CudaRecorder()
# By what owns a model's code and weights, for as long as it lives: its graphs, the one used last at the end.
_captured: Any = WeakIdKeyDictionary()
_lock = threading.RLock()


def clear() -> None:
    """Drop all captured graphs and their memory; the next call of each model captures again."""
    with _lock:
        _captured.clear()


def run(model: Model, setup: Setup, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    """Replay a loop, captured first if it was not yet; return its samples and what its steps noted in `first_bad`.

    Raises:
        BackendError: there is no CUDA device.
        InputError: a condition is on another device or cannot be told from others, or the model cannot be captured.
    """
    reason = recorder.missing(setup.device)
    if reason is not None:
        raise BackendError(reason)
    for name, value in inputs.condition.items():
        if isinstance(value, Tensor) and value.device != setup.device:
            raise InputError(f"condition {name!r} is on {value.device}, and the graph is on {setup.device}")
    owner = model.__self__ if inspect.ismethod(model) else model
    key = _key(model, owner, setup, inputs)
    # A graph's memory must not be bound to the inference mode of the call that captured it.
    with _lock, torch.inference_mode(False), torch.no_grad():
        loops = _loops_of(owner)
        captured = loops.pop(key, None) or _capture_loop(model, setup, inputs)
        loops[key] = captured
        if len(loops) > KEPT:
            loops.popitem(last=False)
        return captured.run(inputs)


def _loops_of(owner: object) -> OrderedDict[Hashable, _Captured]:
    try:
        loops: OrderedDict[Hashable, _Captured] = _captured.setdefault(owner, OrderedDict())
    except TypeError:
        kind = type(owner).__name__
        raise InputError(f"graph=True needs a model that can be referenced weakly, which {kind} cannot") from None
    return loops


def _capture_loop(model: Model, setup: Setup, inputs: Inputs) -> _Captured:
    loop = Loop(setup, inputs.buffers(setup))
    loop.inputs.fill(inputs)

    def warm_up() -> None:
        loop.start()
        # The last one is watched: what compiles itself does so before, since it does not under a dispatch mode.
        for _ in range(_WARM_UP_ROWS - 1):
            loop.row(0, model)
        loop.row(0, _Watched(model, setup.device))

    def work() -> None:
        loop.start()
        for row in range(len(setup.plan)):
            loop.row(row, model)

    with _autocast(setup.device):
        return _Captured(loop, recorder.record(setup.device, warm_up, work))


def _autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return the autocast of the caller without its cache, which would be freed under the graph's feet."""
    kind = device.type
    return torch.autocast(
        kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
    )


def _key(model: Model, owner: object, setup: Setup, inputs: Inputs) -> Hashable:
    """Return all that shapes a graph of an owner; what differs in none of it can share one."""
    method = weakref.ref(model.__func__) if inspect.ismethod(model) else None
    condition = frozenset((name, _kind(name, value)) for name, value in inputs.condition.items())
    given = tuple(image is not None for image in inputs.images)
    kind = setup.device.type
    autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return method, setup, condition, given, autocast, _weights(owner)


def _kind(name: str, value: Any) -> Hashable:
    """Return the kind of a tensor, or a value that the model reads on the host."""
    if isinstance(value, Tensor):
        return Tensor, value.shape, value.dtype
    if isinstance(value, (list, tuple, dict)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return type(value), tuple((key, _inner(name, item)) for key, item in items)
    try:
        hash(value)
    except TypeError:
        kind = type(value).__name__
        raise InputError(f"condition {name!r} is a {kind}, which cannot be told from others: use graph=False") from None
    return type(value), value


def _inner(name: str, value: Any) -> Hashable:
    if isinstance(value, Tensor):
        raise InputError(f"condition {name!r} holds tensors in a container: pass each by a name, or use graph=False")
    return _kind(name, value)


def _weights(owner: object) -> Hashable:
    """Return where a module keeps its weights, and its mode."""
    if not isinstance(owner, nn.Module):
        return None
    tensors = itertools.chain(owner.parameters(), owner.buffers())
    # A wrapper of other tensors, as quantised weights are, has no address: it is known by itself.
    return owner.training, tuple(
        (tensor.data_ptr() or id(tensor), tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors
    )
