"""The ops as torch sees them: `torch.library` schemas, shapes for tracing, and gradients. `reference` documents each.

The device of its tensors chooses the kernel of an op; its overloads choose a backend for GPUs by name, as
`fastdiff::step.cuda`. Kernels are registered by the extension and by `triton`; arguments are positional because
keywords cost time in the dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LIBRARY = torch.library.Library("fastdiff", "DEF")  # type: ignore[no-untyped-call]

SCHEMAS = (
    "step(Tensor(a!) x, Tensor out, Tensor table, int layout, Tensor row, Tensor? uncond=None, Tensor? w=None, "
    "Tensor? key=None, Tensor(b!)? model_input=None, Tensor(c!)? first_bad=None, Tensor? variance=None, "
    "Tensor? scale=None, Tensor? threshold=None, Tensor(d!)? y=None, Tensor(e!)? history=None, Tensor? z=None, "
    "Tensor(f!)? x0_out=None, Tensor? w_uncond=None, Tensor? known=None, Tensor? mask=None) -> ()",
    "normal_(Tensor(a!) z, Tensor key, Tensor draw, int stream) -> ()",
    "q_sample(Tensor x0, Tensor level, Tensor table, Tensor? key, Tensor? draw, int stream, Tensor? noise, "
    "bool return_noise) -> (Tensor, Tensor)",
    "q_sample.out(Tensor x0, Tensor level, Tensor table, Tensor? key, Tensor? draw, int stream, Tensor? noise, "
    "Tensor(a!) x_t, Tensor(b!)? drawn) -> ()",
    "noise_loss(Tensor pred, Tensor key, Tensor draw, int stream, Tensor? x0=None, Tensor? level=None, "
    "Tensor? table=None) -> Tensor",
    "noise_loss_backward(Tensor grad, Tensor pred, Tensor key, Tensor draw, int stream, Tensor? x0=None, "
    "Tensor? level=None, Tensor? table=None) -> Tensor",
    "guidance_rescale(Tensor out, Tensor uncond, Tensor w, float phi) -> Tensor",
    "inner_products(Tensor out, Tensor uncond) -> Tensor",
    "threshold(Tensor x, Tensor out, Tensor table, int layout, Tensor row, Tensor? uncond, Tensor? w, Tensor? scale, "
    "Tensor? w_uncond, float quantile) -> Tensor",
    "cpu_level(int? level=None) -> int",
)
GPU_BACKENDS = ("triton", "cuda")
# Each function of a backend, and its op.
FUNCTIONS = {
    "step": "step",
    "normal_": "normal_",
    "q_sample": "q_sample",
    "q_sample_out": "q_sample.out",
    "noise_loss": "noise_loss",
    "noise_loss_backward": "noise_loss_backward",
    "guidance_rescale": "guidance_rescale",
    "inner_products": "inner_products",
    "threshold": "threshold",
}
_BY_DEVICE = ""


def overload(op: str, backend: str) -> str:
    """Return the overload of an op that a GPU backend has, as "q_sample.cuda_out" of "q_sample.out"."""
    name, _, variant = op.partition(".")
    return ".".join(filter(None, (name, "_".join(filter(None, (backend, variant))))))


def _define(schema: str, backend: str) -> None:
    name, parenthesis, arguments = schema.partition("(")
    if not backend or name in FUNCTIONS.values():
        LIBRARY.define(  # type: ignore[no-untyped-call]
            overload(name, backend) + parenthesis + arguments, tags=torch.Tag.pt2_compliant_tag
        )


def _ops(backend: str) -> dict[str, Callable[..., Any]]:
    return {function: _op(overload(op, backend)) for function, op in FUNCTIONS.items()}


def _op(name: str) -> Callable[..., Any]:
    op, _, variant = name.partition(".")
    found: Callable[..., Any] = getattr(getattr(torch.ops.fastdiff, op), variant or "default")
    return found


# `torch.ops.fastdiff.step(...)` calls the overload that was defined first. And torch 2.13 aborts at exit where
# q_sample.out was defined after q_sample.triton.
for backend in (_BY_DEVICE, *GPU_BACKENDS):
    for schema in SCHEMAS:
        _define(schema, backend)

# The functions of a backend as ops, where the device chooses the kernel, and those of each GPU backend.
OPS = _ops(_BY_DEVICE)
GPU_OPS = {backend: _ops(backend) for backend in GPU_BACKENDS}


def _nothing(*arguments: object) -> None:
    """Shapes of an op that only writes into its arguments."""


def _q_sample_shapes(
    x0: Tensor,
    level: Tensor,
    table: Tensor,
    key: Tensor | None,
    draw: Tensor | None,
    stream: int,
    noise: Tensor | None,
    return_noise: bool,
) -> tuple[Tensor, Tensor]:
    drawn = x0.shape if return_noise and noise is None else (0,)
    return x0.new_empty(x0.shape), x0.new_empty(drawn, dtype=torch.float32)


def _like_prediction(grad: Tensor, pred: Tensor, *others: object) -> Tensor:
    return pred.new_empty(pred.shape)


def _one_per_sample(first: Tensor, *others: object) -> Tensor:
    return first.new_empty(first.shape[0], dtype=torch.float32)


def _three_per_sample(out: Tensor, uncond: Tensor) -> Tensor:
    return out.new_empty((3, out.shape[0]), dtype=torch.float32)


def _keep_levels(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x0, level, table, *_, noise, _ = inputs
    ctx.save_for_backward(level, table)
    ctx.dtypes = x0.dtype, None if noise is None else noise.dtype
    ctx.mark_non_differentiable(output[1])


def _q_sample_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    level, table = ctx.saved_tensors
    alpha, sigma = table[level].reshape(-1, 2, *[1] * (grad.ndim - 1)).unbind(1)
    of_x0, of_noise = ctx.needs_input_grad[0], ctx.needs_input_grad[6]
    x0_dtype, noise_dtype = ctx.dtypes
    return (
        (alpha * grad).to(x0_dtype) if of_x0 else None,
        *[None] * 5,
        (sigma * grad).to(noise_dtype) if of_noise else None,
        None,
    )


def _keep_prediction(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pred, key, draw, ctx.stream, *target = inputs
    ctx.save_for_backward(pred, key, draw, *target)


def _noise_loss_gradient(ops: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Return the gradient of the op `noise_loss` among `ops`, which the same backend computes."""

    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pred, key, draw, *target = ctx.saved_tensors
        return ops["noise_loss_backward"](grad, pred, key, draw, ctx.stream, *target), *[None] * 6

    return backward


_FAKES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("step", "normal_", "q_sample.out"), _nothing),
    "q_sample": _q_sample_shapes,
    "noise_loss_backward": _like_prediction,
    **dict.fromkeys(("noise_loss", "guidance_rescale", "threshold"), _one_per_sample),
    "inner_products": _three_per_sample,
}
for backend, ops in {_BY_DEVICE: OPS, **GPU_OPS}.items():
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"fastdiff::{overload(name, backend)}", fake, lib=LIBRARY)
    for name, backward, setup in (
        ("q_sample", _q_sample_backward, _keep_levels),
        ("noise_loss", _noise_loss_gradient(ops), _keep_prediction),
    ):
        torch.library.register_autograd(
            f"fastdiff::{overload(name, backend)}", backward, setup_context=setup, lib=LIBRARY
        )
