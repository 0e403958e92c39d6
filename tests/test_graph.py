"""Captured loops, without a GPU: a recorder that does recorded ops again on the same memory stands in for CUDA graphs.

So a value that reached the ops from the host, and not through memory, stays what it was at the capture and shows.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
import weakref
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastdiff as fd
from fastdiff.guidance import APG, CFG, Autoguidance, CFGZero, ClassifierGuidance, Views, views
from fastdiff.ops import native, triton
from tests.backends import needs_extension, needs_interpreter

SCHEDULE = fd.schedules.linear(100)
SHAPE = (3, 2, 3, 3)


class Tape(TorchDispatchMode):
    """Ops with their tensors, in order. Like a capture, it refuses an op that gives a value to the host."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def turn(self, memory: Iterable[Tensor]) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            given = {storage(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
            for kept, fresh in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(kept, Tensor) and storage(kept) not in given:
                    kept.copy_(fresh)

    def forget(self) -> None:
        """Spoil what the ops wrote: a capture does nothing, the first replay has to."""
        for func, *_, result in self.calls:
            # A view may be of memory that nothing writes.
            for value in () if getattr(func, "is_view", False) else tree_leaves(result):
                if isinstance(value, Tensor) and value.is_floating_point() and not value.is_inference():
                    value.fill_(torch.nan)


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Recorder:
    """Records tapes, and counts them."""

    captures = 0

    def missing(self, device: torch.device) -> str | None:
        return None

    def record(self, device: torch.device, warm_up: Any, work: Any) -> Tape:
        warm_up()
        tape = Tape()
        with tape:
            work()
        tape.forget()
        self.captures += 1
        return tape


@pytest.fixture
def recorder(monkeypatch):
    """Loops are recorded on the CPU, steps by their op: a call past the dispatcher would not be seen."""
    recorder = Recorder()
    native.missing()  # loads the extension now, or it would put its own step back later
    monkeypatch.setattr(fd.graph, "recorder", recorder)
    for ops in (native.ops, triton.ops):
        monkeypatch.setattr(ops, "step_directly", ops.step)
    fd.graph.clear()
    yield recorder
    fd.graph.clear()


def plan(**options: Any) -> fd.Plan:
    return fd.samplers.ddim(SCHEDULE, **{"steps": 4, "eta": 1.0, **options})


class Network(nn.Module):
    """Depends on all that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, power: float = 1.0) -> Tensor:
        shift = 0.0 if y is None else y.to(x.dtype).view(-1, 1, 1, 1) / 10
        out = torch.tanh(self.weight.to(x.dtype) * x + shift) * torch.cos(t.to(x.dtype) / 50).view(-1, 1, 1, 1) * power
        return out if self.training else out / 2


def labels(*values: int) -> dict[str, Tensor]:
    return {"y": torch.tensor(values)}


def both(model: Any, steps: fd.Plan, shape: tuple[int, ...] = SHAPE, **options: Any) -> None:
    """A replay has the bits of the loop."""
    replayed, looped = (fd.sample(model, steps, shape, graph=graph, **options) for graph in (True, False))
    assert torch.equal(replayed, looped)


GUIDED = {"cond": labels(1, 2, 3), "uncond": labels(0, 0, 0), "guidance": 2.0}
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "seeds": ({"seed": 1}, [{"seed": 2**64 - 1}, {"seed": [3, 4, 5]}, {"seed": torch.tensor([7, 8, 9])}]),
    "indices": ({}, [{"index": [9, 1, 2**56 - 1]}, {"index": torch.tensor([4, 4, 5])}]),
    "conditions": ({"cond": labels(1, 2, 3)}, [{"cond": labels(3, 2, 1)}, {"cond": {"y": torch.arange(6)[::2]}}]),
    "guidance": (
        GUIDED,
        [{"guidance": -1.5}, {"guidance": torch.tensor([0.0, 1.0, 9.0])}, {"guidance": torch.tensor(3.0)}],
    ),
    "unconditional": (GUIDED, [{"uncond": labels(9, 8, 7)}, {"cond": labels(5, 5, 5), "uncond": labels(1, 1, 2)}]),
    "starts": ({"x_init": torch.ones(SHAPE)}, [{"x_init": torch.randn(SHAPE)}, {"x_init": torch.ones(SHAPE).half()}]),
    "scales of each row": (
        {**GUIDED, "guidance": torch.full((4, 3), 2.0)},
        [{"guidance": torch.arange(12.0).view(4, 3)}, {"guidance": lambda level: 3.0 + level}],
    ),
    "interval": (
        {**GUIDED, "guidance": CFG(2.0, (0.1, 0.6))},
        [{"guidance": CFG(5.0, (0.1, 0.6))}, {"guidance": CFG(torch.tensor([0.0, 1.0, 3.0]), (0.1, 0.6))}],
    ),
    "APG": (
        {**GUIDED, "guidance": APG(2.0, norm=0.5, momentum=-0.5)},
        [{"guidance": APG(torch.tensor([0.0, 1.0, 3.0]), norm=0.5, momentum=-0.5), "seed": 5}],
    ),
    "CFG-Zero*": ({**GUIDED, "guidance": CFGZero(2.0)}, [{"guidance": CFGZero(3.0), "seed": 5}]),
    "noised data": ({"x0_init": torch.zeros(SHAPE)}, [{"x0_init": torch.ones(1, 2, 1, 3)}, {"seed": 4}]),
    "known data": (
        {"known": torch.zeros(SHAPE), "mask": torch.ones(3)},
        [{"known": torch.ones(1).double()}, {"mask": torch.tensor([[0.0], [0.5], [1.0]])}],
    ),
    "all at once": (
        {**GUIDED, "guidance_rescale": 0.5, "dynamic_threshold": 0.9, "x_init": torch.zeros(SHAPE)},
        [{"seed": 5, "index": [2, 1, 0], "guidance": 4.0, "x_init": torch.full(SHAPE, 0.5)}],
    ),
}


@needs_extension
@pytest.mark.parametrize("case", CASES)
def test_replays_new_values_without_capturing_again(recorder, case):
    """Seeds, indices, conditions, guidance and start states are read at each replay, wherever they came from."""
    network, (first, others) = Network(), CASES[case]
    for change in ({}, *others, {}):
        both(network, plan(), **{**first, **change})
    assert recorder.captures == 1


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_history_and_anchor_start_anew(recorder, dtype):
    """A replay finds nothing of the one before in the buffers that rows add to."""
    columns = {"cx": 0.5, "cy": 0.1, "po": 0.3, "ch0": [0.0, 0.5, 0.2], "ch1": 0.3, "dx": 0.5, "dz": 0.2}
    steps = fd.Plan.build("both", [2.0, 1.0, 0.0], {**columns, "slot": [0, 1, 0]}, init_scale=2.0)
    network = Network()
    for seed in (1, 2, 1):
        both(network, steps, seed=seed, dtype=dtype)
    assert recorder.captures == 1


@needs_interpreter
@pytest.mark.parametrize("normals", ["exact", "fast"])
def test_a_loop_of_triton_kernels(recorder, normals):
    """Their row, seeds and scales are read from memory, too."""
    network = Network()
    for change in ({}, {"seed": 5, "guidance": 3.0, "cond": labels(3, 2, 1)}):
        both(network, plan(steps=2), backend="triton", normals=normals, **{**GUIDED, **change})
    assert recorder.captures == 1


@needs_extension
def test_a_result_outlives_the_next_replay(recorder):
    """What was returned is not the memory that the next replay writes."""
    network = Network()
    first = fd.sample(network, plan(), SHAPE, seed=1, graph=True)
    kept = first.clone()
    fd.sample(network, plan(), SHAPE, seed=2, graph=True)
    assert torch.equal(first, kept)


@needs_extension
@pytest.mark.parametrize(
    "change",
    [
        {"plan": plan(eta=0.5)},
        {"plan": plan(steps=5)},
        {"shape": (3, 2, 3, 4)},
        {"dtype": torch.bfloat16},
        {"cond": labels(1, 2, 3), "uncond": labels(0, 0, 0), "guidance": 2.0},
        {"cond": {"y": torch.tensor([1, 2, 3], dtype=torch.int32)}},
        {"cond": {**labels(1, 2, 3), "power": 2.0}},
        {"cond": {**labels(1, 2, 3), "power": True}},
        {"dynamic_threshold": 0.9},
        {"check_finite": False},
        {"x_init": torch.zeros(SHAPE)},
        {"x0_init": torch.zeros(SHAPE)},
        {"mask": torch.ones(1), "known": torch.zeros(SHAPE)},
    ],
    ids=lambda change: next(reversed(change)),
)
def test_what_shapes_the_loop_is_captured_anew(recorder, change):
    """Each of these is another graph, and both stay."""
    network = Network()
    usual = {"model": network, "plan": plan(), "shape": SHAPE, "cond": labels(1, 2, 3)}
    for arguments in (usual, {**usual, **change}, usual, {**usual, **change}):
        arguments = dict(arguments)
        both(arguments.pop("model"), arguments.pop("plan"), arguments.pop("shape"), **arguments)
    assert recorder.captures == 2


@needs_extension
def test_an_equal_plan_is_the_same(recorder):
    """Plans are told apart by their content."""
    network = Network()
    both(network, plan())
    both(network, plan())
    assert recorder.captures == 1


@needs_extension
def test_guidance_rescale_is_captured_anew(recorder):
    """The strength of a correction is part of the graph."""
    network = Network()
    for phi in (0.0, 0.5, 0.7, 0.5):
        both(network, plan(), guidance_rescale=phi, **GUIDED)
    assert recorder.captures == 3


@needs_extension
def test_guidance_is_captured_anew(recorder):
    """Where the unconditional branch is left out, and how the branches are combined, shapes the graph."""
    network = Network()
    rules = CFG(2.0, (0.1, 0.6)), CFG(2.0, (0.1, 0.2)), APG(2.0), APG(2.0, eta=0.5)
    for rule in (*rules, *rules):
        both(network, plan(), **{**GUIDED, "guidance": rule})
    assert recorder.captures == len(rules)


def log_probability(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return -(t / 100 * (x - y.view(-1, 1, 1, 1) / 10).square().sum(dim=(1, 2, 3)))


MIRRORED = [views.identity, views.flip(-1), views.permutation([8, 7, 6, 5, 4, 3, 2, 1, 0])]
LABELS = {name: {"y": value["y"][:, None].expand(3, 3)} for name, value in GUIDED.items() if name != "guidance"}
WRAPPED: dict[str, tuple[Any, dict[str, Any]]] = {
    "autoguidance": (lambda network: Autoguidance(network, Network()), GUIDED),
    "classifier": (lambda network: ClassifierGuidance(network, log_probability, SCHEDULE), GUIDED),
    "views": (lambda network: Views(network, MIRRORED), {**LABELS, "guidance": 2.0}),
}


@needs_extension
@pytest.mark.parametrize("case", WRAPPED)
def test_models_around_models(recorder, case):
    """They are captured as one model, and know the weights of all of their networks."""
    wrap, options = WRAPPED[case]
    network = Network()
    model = wrap(network)
    for seed in (1, 2):
        both(model, plan(), seed=seed, **options)
    with torch.no_grad():
        network.weight.fill_(-0.3)
    both(model, plan(), **options)
    assert recorder.captures == 1
    network.weight = nn.Parameter(torch.tensor(1.5))
    both(model, plan(), **options)
    assert recorder.captures == 2


@needs_extension
def test_the_worse_network_is_watched_too(recorder):
    """What waits in the second branch is refused like what waits in the first."""
    with pytest.raises(fd.InputError, match="_local_scalar_dense"):
        fd.sample(Autoguidance(identity, item), plan(), SHAPE, guidance=2.0, graph=True)


@needs_extension
def test_modes_are_captured_anew(recorder):
    """Training or not, autocast or not, and a call in inference mode leaves memory that others can write."""
    network = Network()
    with torch.inference_mode():
        both(network, plan())
    both(network, plan())
    assert recorder.captures == 1
    network.eval()
    both(network, plan())
    assert recorder.captures == 2
    with torch.autocast("cpu"):
        both(network, plan())
    assert recorder.captures == 3


@needs_extension
def test_autocast_keeps_no_copy_of_the_weights(recorder):
    """A cached cast would be freed with the caller's autocast, and would miss a change of the weight."""
    network = nn.Linear(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        both(lambda_of(network), plan())
        with torch.no_grad():
            network.weight.mul_(-1)
        torch.clear_autocast_cache()
        both(lambda_of(network), plan())
    assert recorder.captures == 1


@functools.cache
def lambda_of(network: nn.Module) -> Any:
    return lambda x, t: network(x).float()


@needs_extension
def test_weights_may_change_in_place(recorder):
    """Training goes on between two replays; a parameter that was replaced is noticed."""
    network = Network()
    both(network, plan())
    with torch.no_grad():
        network.weight.fill_(-0.3)
    both(network, plan())
    assert recorder.captures == 1
    kept = network.weight
    network.weight = nn.Parameter(torch.tensor(1.5))
    both(network, plan())
    assert recorder.captures == 2 and kept.item() != 1.5


class Packed(Tensor):
    """A tensor without memory of its own, as quantised weights are."""

    @staticmethod
    def __new__(cls) -> Packed:
        return Tensor._make_wrapper_subclass(cls, (3,))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("nobody computes with it")


@needs_extension
def test_weights_of_another_shape_at_the_same_place_are_captured_anew(recorder):
    """The allocator gives the same address again: it alone does not tell one weight from another."""
    memory = torch.arange(18.0)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(memory.view(2, 3, 3))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * self.weight.sum(0, keepdim=True).flatten()[:3]

    network = Network()
    both(network, plan())
    network.weight = nn.Parameter(memory.view(3, 3, 2))
    both(network, plan())
    assert recorder.captures == 2


@needs_extension
def test_weights_without_an_address(recorder):
    """They are told apart as objects."""
    network = Network()
    network.register_buffer("packed", Packed())
    both(network, plan())
    both(network, plan())
    assert recorder.captures == 1
    network.packed = Packed()
    both(network, plan())
    assert recorder.captures == 2


class Pair:
    """Two networks in one object, as bound methods."""

    def __init__(self) -> None:
        self.bias = torch.tensor([[0.5]])

    def plus(self, x: Tensor, t: Tensor) -> Tensor:
        return x / 2 + self.bias

    def minus(self, x: Tensor, t: Tensor) -> Tensor:
        return x / 2 - self.bias


@needs_extension
def test_bound_methods_and_functions(recorder):
    """A bound method is another object at each access, so its graph belongs to what it is bound to."""
    pair = Pair()
    partial = functools.partial(pair.plus)
    for _ in range(2):
        for model in (pair.plus, pair.minus, partial, identity):
            both(model, plan(), (3, 4))
    assert recorder.captures == 4


def identity(x: Tensor, t: Tensor) -> Tensor:
    return x


@needs_extension
@pytest.mark.parametrize("make", [Network, lambda: Pair().plus, lambda: lambda x, t: x / 2])
def test_graphs_die_with_their_model(recorder, make):
    """Nothing in a graph keeps a model alive, and what is dead takes no memory."""
    model = make()
    owner = weakref.ref(getattr(model, "__self__", model))
    both(model, plan(), (3, 4, 1, 1))
    assert len(fd.graph._captured) == 1
    del model
    gc.collect()
    assert owner() is None
    assert len(fd.graph._captured) == 0


@needs_extension
def test_few_graphs_are_kept(recorder):
    """The one that was used longest ago goes first, and clear() drops all."""
    network, batches = Network(), range(1, fd.graph.KEPT + 2)
    for batch in (*batches[:-1], 1, batches[-1]):
        both(network, plan(), (batch, *SHAPE[1:]))
    assert recorder.captures == fd.graph.KEPT + 1
    both(network, plan(), (1, *SHAPE[1:]))
    assert recorder.captures == fd.graph.KEPT + 1
    both(network, plan(), (2, *SHAPE[1:]))
    assert recorder.captures == fd.graph.KEPT + 2
    fd.graph.clear()
    both(network, plan(), (2, *SHAPE[1:]))
    assert recorder.captures == fd.graph.KEPT + 3


@needs_extension
def test_a_replay_names_what_is_not_finite(recorder):
    """The row and the sample, read once at the end; the next replay is clean."""
    network = Network()
    clean, bad = {"y": torch.ones(3)}, {"y": torch.tensor([1.0, torch.nan, 3.0])}
    both(network, plan(), cond=clean)
    with pytest.raises(fd.NonFiniteError, match=r"the model output at row 0 of 4 .* sample 1 of the batch"):
        fd.sample(network, plan(), SHAPE, cond=bad, graph=True)
    both(network, plan(), cond=clean)
    assert recorder.captures == 1


@needs_extension
def test_threads_take_turns(recorder):
    """One graph, two threads, many seeds: everyone gets what is theirs."""
    network = Network()
    wanted = [fd.sample(network, plan(), SHAPE, seed=seed) for seed in range(20)]
    wrong = []

    def draw(seeds: range) -> None:
        torch.set_num_threads(1)
        for seed in seeds:
            if not torch.equal(fd.sample(network, plan(), SHAPE, seed=seed, graph=True), wanted[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=draw, args=(range(k, 20, 2),)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert recorder.captures == 1


@needs_extension
def test_the_recorder_tells_host_from_memory(recorder):
    """What a model reads on the host stays as it was: the other tests would see a seed or scale that came that way."""
    number = [0.5]

    def network(x: Tensor, t: Tensor) -> Tensor:
        return x * number[0]

    before = fd.sample(network, plan(), SHAPE, graph=True)
    number[0] = 0.25
    assert torch.equal(fd.sample(network, plan(), SHAPE, graph=True), before)
    fd.graph.clear()
    both(network, plan())


def item(x: Tensor, t: Tensor) -> Tensor:
    return x * t[0].item()


def branch(x: Tensor, t: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def indices(x: Tensor, t: Tensor) -> Tensor:
    return x * len(x.nonzero())


def mask(x: Tensor, t: Tensor) -> Tensor:
    return x * len(torch.masked_select(x, x > 0))


def index_by_mask(x: Tensor, t: Tensor) -> Tensor:
    return x * len(x[x > 0])


def repeats(x: Tensor, t: Tensor) -> Tensor:
    return x * len(torch.repeat_interleave(x, (t * 0 + 2).long(), dim=0))


def copy(x: Tensor, t: Tensor) -> Tensor:
    x.to("meta")
    return x


@needs_extension
@pytest.mark.parametrize(
    ("model", "op"),
    [
        (item, "_local_scalar_dense"),
        (branch, "_local_scalar_dense"),
        (indices, "nonzero"),
        (mask, "masked_select"),
        (index_by_mask, "aten.index.Tensor"),
        (repeats, "repeat_interleave"),
        (copy, "cpu to meta"),
    ],
)
def test_a_model_that_waits_is_refused(recorder, model, op):
    """With the op and what to do, before anything is captured."""
    with pytest.raises(fd.InputError, match=rf"cannot be captured as a CUDA graph: .*{op}.*use graph=False"):
        fd.sample(model, plan(), SHAPE, graph=True)
    assert recorder.captures == 0


def gathers(x: Tensor, t: Tensor) -> Tensor:
    return x[torch.arange(len(x)).flip(0)].to(torch.float64).to(x.dtype).clone()


@needs_extension
def test_an_index_and_a_conversion_do_not_wait(recorder):
    """What stays on the device is captured."""
    both(gathers, plan())
    assert recorder.captures == 1


@needs_extension
def test_an_op_of_higher_order_is_let_through(recorder):
    """Ops that take functions, as attention with masks of one's own does, are watched from within."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.ops.higher_order.strict_mode(lambda value: value / 2, (x,))

    both(network, plan())


@needs_extension
def test_a_model_that_compiles_itself(recorder):
    """It is compiled in the warm-up, before it is watched, and serves other calls as it did."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(lambda x, t: x / 2, backend="aot_eager")
    fd.sample(compiled, plan(), SHAPE, graph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        fd.sample(compiled, plan(), SHAPE)
    assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


@needs_extension
def test_a_model_that_fails_leaves_nothing(recorder):
    """Its own error comes out, and the next call captures."""
    calls = [0]

    def network(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == 5:  # in the capture, behind the warm-up
            raise KeyError("once")
        return x / 2

    with pytest.raises(KeyError, match="once"):
        fd.sample(network, plan(), SHAPE, graph=True)
    both(network, plan())
    assert recorder.captures == 1


class Slotted:
    __slots__ = ()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return x


@needs_extension
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"callback": lambda row, x, x0: None}, "leave callback out"),
        ({"noise": lambda stream, draw, shape: torch.zeros(shape)}, "leave noise out"),
        ({"progress": True}, "leave progress out"),
        ({"cond": {"y": torch.zeros(3, device="meta")}}, "condition 'y' is on meta, and the graph is on cpu"),
        ({"cond": {"power": {"a": [torch.zeros(3)]}}}, "'power' holds tensors in a container"),
        ({"cond": {"power": {1, 2}}}, "'power' is a set, which cannot be told from others"),
        ({"model": Slotted()}, "Slotted cannot"),
    ],
)
def test_refusals(recorder, options, message):
    """What a graph cannot do costs one line."""
    arguments = {"model": Network(), "plan": plan(), "shape": SHAPE, **options}
    with pytest.raises(fd.InputError, match=message) as raised:
        fd.sample(**arguments, graph=True)
    assert "\n" not in str(raised.value)
    assert recorder.captures == 0


def test_needs_a_cuda_device():
    """Elsewhere there are no graphs."""
    with pytest.raises(fd.BackendError, match="graph=True needs a CUDA device, and this loop is on cpu"):
        fd.sample(Network(), plan(), SHAPE, graph=True)
