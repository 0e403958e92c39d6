"""The ops as torch sees them: schemas, tracing, gradients."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.ops import dispatch, reference, schema
from fastdiff.ops.philox import STREAMS
from fastdiff.plan import HISTORY_SLOTS, NEUTRAL, Plan
from tests.backends import needs_extension, needs_interpreter

B, SHAPE = 2, (2, 3, 5)
KEY, DRAW = torch.tensor([[7, -1], [3, 2**40]]), torch.tensor([4, 1])
STREAM = STREAMS["q_sample"]
LEVELS = torch.tensor([[0.9, 0.3], [0.5, 0.8], [0.1, 1.2]])


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(
    name="kernels", params=[pytest.param("cpu", marks=needs_extension), pytest.param("triton", marks=needs_interpreter)]
)
def loaded_kernels(request: pytest.FixtureRequest) -> dispatch.Backend:
    """The ops with their kernels loaded."""
    return dispatch.backend(request.param, torch.device("cpu"))


def plan() -> Plan:
    columns = {name: 0.5 + 0.1 * k for k, name in enumerate(NEUTRAL) if name != "slot"}
    return Plan.build("all", [1.0, 0.0], {**columns, "slot": [0.0, 2.0]}, stores="eps")


def step_arguments() -> tuple[Any, ...]:
    all_columns = plan()
    image = [randn(*SHAPE, seed=k) for k in range(6)]
    return (
        *(image[0], image[1].bfloat16(), torch.from_numpy(all_columns.table.copy()).float(), all_columns.layout),
        *(torch.tensor([0, 1]), image[2].bfloat16(), randn(B), KEY, torch.zeros(2 * B, *SHAPE[1:])),
        *(torch.full((B,), 9), image[3], randn(B), randn(B).abs(), image[4], randn(HISTORY_SLOTS, *SHAPE), None),
        *(torch.zeros(SHAPE), randn(B), image[5], torch.full(SHAPE, 0.5)),
    )


def arguments() -> dict[str, tuple[Any, ...]]:
    """One call of each op, with every tensor given."""
    x, out, table, layout, row, uncond, w, *_ = step_arguments()
    x0, level = randn(*SHAPE, dtype=torch.bfloat16), torch.tensor([0, 2])
    noised, target = (x0, level, LEVELS, KEY, DRAW, STREAM, None), (randn(*SHAPE), level, LEVELS)
    return {
        "step": step_arguments(),
        "normal_": (torch.zeros(SHAPE), KEY, DRAW, STREAM),
        "q_sample": (*noised, True),
        "q_sample_out": (*noised, torch.zeros_like(x0), torch.zeros(SHAPE)),
        "noise_loss": (x0, KEY, DRAW, STREAM, *target),
        "noise_loss_backward": (randn(B), x0, KEY, DRAW, STREAM, *target),
        "guidance_rescale": (out, uncond, w, 0.7),
        "inner_products": (out, uncond),
        "threshold": (x, out, table, layout, row, uncond, w, None, None, 0.9),
    }


@pytest.mark.parametrize("ops", [schema.OPS, *schema.GPU_OPS.values()], ids=["by device", *schema.GPU_OPS])
def test_schemas_are_the_signatures_of_the_reference(ops: dict[str, Any]) -> None:
    """Names, order and defaults of every op's arguments are those of the function that specifies it."""
    for name, op in ops.items():
        parameters = inspect.signature(getattr(reference, name)).parameters.values()
        described = [(argument.name, argument.has_default_value()) for argument in op._schema.arguments]
        assert described == [(p.name, p.default is not p.empty) for p in parameters]


@pytest.mark.parametrize("backend", schema.GPU_BACKENDS)
def test_each_gpu_backend_has_its_own_overloads(backend: str) -> None:
    """An op of a GPU backend is an overload of the op of the same name, and no other's."""
    for name, op in schema.GPU_OPS[backend].items():
        by_device = schema.OPS[name]._schema
        assert op._schema.name == by_device.name
        assert op._schema.overload_name.split("_") == [backend, *filter(None, by_device.overload_name.split("_"))]


@needs_extension
def test_the_device_chooses_where_no_overload_is_named(extension: None) -> None:
    """`torch.ops.fastdiff.normal_(...)` is none of the overloads that name a backend."""
    called = []

    class Listen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func)
            return func(*args)

    with Listen():
        torch.ops.fastdiff.normal_(torch.zeros(SHAPE), KEY, DRAW, STREAM)
    assert called[-1] is schema.OPS["normal_"]


@pytest.mark.parametrize("name", sorted(schema.OPS))
def test_opcheck(kernels: dispatch.Backend, name: str) -> None:
    """torch's own check: what is written is declared, and tracing sees the right shapes, dtypes and gradients."""
    torch.library.opcheck(getattr(kernels, name), arguments()[name])


@pytest.mark.parametrize("given", [False, True])
def test_opcheck_with_gradients(kernels: dispatch.Backend, given: bool) -> None:
    """The same where a gradient is wanted, with drawn and with given noise, against the noise and against a target."""
    x0, noise = (randn(*SHAPE, seed=k).requires_grad_() for k in range(2))
    drawn = (None, None, STREAM, noise, False) if given else (KEY, DRAW, STREAM, None, True)
    torch.library.opcheck(kernels.q_sample, (x0, torch.tensor([0, 2]), LEVELS, *drawn))
    target = (noise.detach(), torch.tensor([0, 2]), LEVELS) if given else ()
    torch.library.opcheck(kernels.noise_loss, (x0, KEY, DRAW, STREAM, *target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [False, True])
def test_q_sample_gradients(kernels: dispatch.Backend, dtype: torch.dtype, given: bool) -> None:
    """Gradients with respect to x0 and noise are those of plain torch to the last bit: one product, rounded once."""

    def gradients(backend: Any) -> tuple[Tensor, ...]:
        x0, noise = randn(*SHAPE, dtype=dtype, seed=1).requires_grad_(), randn(*SHAPE, seed=2).requires_grad_()
        drawn = (None, None, STREAM, noise, False) if given else (KEY, DRAW, STREAM, None, True)
        x_t, eps = backend.q_sample(x0, torch.tensor([0, 2]), LEVELS, *drawn)
        assert not eps.requires_grad
        return torch.autograd.grad(x_t, (x0, noise) if given else (x0,), randn(*SHAPE, dtype=dtype, seed=3))

    for got, wanted in zip(gradients(kernels), gradients(reference), strict=True):
        assert got.dtype == wanted.dtype and torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", [(), (randn(*SHAPE, seed=4), torch.tensor([0, 2]), LEVELS)], ids=["noise", "target"])
def test_noise_loss_gradients(kernels: dispatch.Backend, target: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """The gradient with respect to pred is that of plain torch to the last bit; both round in the order of step.md."""

    def gradient(backend: Any) -> Tensor:
        pred = randn(*SHAPE, dtype=dtype).requires_grad_()
        errors = backend.noise_loss(pred, KEY, DRAW, STREAM, *target)
        return torch.autograd.grad(errors, pred, randn(B))[0]

    assert torch.equal(gradient(kernels), gradient(reference))
    backward = reference.noise_loss_backward(randn(B), randn(*SHAPE, dtype=dtype), KEY, DRAW, STREAM, *target)
    assert torch.equal(gradient(kernels), backward)


def test_noise_loss_has_no_second_derivative(kernels: dispatch.Backend) -> None:
    """A gradient of the gradient is an error, not zero."""
    pred = randn(*SHAPE).requires_grad_()
    errors = kernels.noise_loss(pred, KEY, DRAW, STREAM)
    (gradient,) = torch.autograd.grad(errors.sum(), pred, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(gradient.sum(), pred)


def test_compiles(kernels: dispatch.Backend) -> None:
    """Under torch.compile, with the whole graph captured, an op gives the bits that it gives without."""

    def noised(x0: Tensor) -> Tensor:
        return kernels.q_sample(2 * x0, torch.tensor([0, 2]), LEVELS, KEY, DRAW, STREAM, None, False)[0]

    x0 = randn(*SHAPE)
    assert torch.equal(torch.compile(noised, fullgraph=True, backend="aot_eager")(x0), noised(x0))


def test_noise_loss_compiles(kernels: dispatch.Backend) -> None:
    """So does the loss against a target, and its gradient: one graph each."""
    x0, level = randn(*SHAPE, seed=1), torch.tensor([0, 2])

    def loss(pred: Tensor) -> Tensor:
        return kernels.noise_loss(2 * pred, KEY, DRAW, STREAM, x0, level, LEVELS).mean()

    pred = randn(*SHAPE).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(pred)
    assert torch.equal(compiled, loss(pred))
    assert torch.equal(*(torch.autograd.grad(each, pred)[0] for each in (compiled, loss(pred))))


@needs_extension
def test_any_batch_in_one_graph() -> None:
    """Shapes keep the batch symbolic: an export with a dynamic batch runs at other batches."""

    class Loss(torch.nn.Module):
        def forward(self, pred: torch.Tensor, key: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
            return torch.ops.fastdiff.noise_loss(pred, key, draw, STREAM)

    def inputs(batch: int) -> tuple[torch.Tensor, ...]:
        return torch.ones(batch, 5), torch.arange(2 * batch).view(2, batch), torch.arange(batch)

    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(Loss(), inputs(3), dynamic_shapes=({0: batch}, {1: batch}, {0: batch}))
    assert torch.equal(exported.module()(*inputs(7)), Loss()(*inputs(7)))
