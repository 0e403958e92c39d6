"""The ops as torch sees them: `torch.library` schemas, shapes for tracing, and gradients. `reference` documents each.

The kernels are registered by the extension; arguments are positional because keywords cost time in the dispatcher.
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
    "Tensor(f!)? x0_out=None) -> ()",
    "normal_(Tensor(a!) z, Tensor key, Tensor draw, int stream) -> ()",
    "q_sample(Tensor x0, Tensor level, Tensor table, Tensor? key, Tensor? draw, int stream, Tensor? noise, "
    "bool return_noise) -> (Tensor, Tensor)",
    "q_sample.out(Tensor x0, Tensor level, Tensor table, Tensor? key, Tensor? draw, int stream, Tensor? noise, "
    "Tensor(a!) x_t, Tensor(b!)? drawn) -> ()",
    "noise_loss(Tensor pred, Tensor key, Tensor draw, int stream) -> Tensor",
    "noise_loss_backward(Tensor grad, Tensor pred, Tensor key, Tensor draw, int stream) -> Tensor",
    "guidance_rescale(Tensor out, Tensor uncond, Tensor w, float phi) -> Tensor",
    "threshold(Tensor x, Tensor out, Tensor table, int layout, Tensor row, Tensor? uncond, Tensor? w, Tensor? scale, "
    "float quantile) -> Tensor",
    "cpu_level(int? level=None) -> int",
)
for schema in SCHEMAS:
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)  # type: ignore[no-untyped-call]

# Each function of a backend, and its op.
OPS = {
    "step": torch.ops.fastdiff.step.default,
    "normal_": torch.ops.fastdiff.normal_.default,
    "q_sample": torch.ops.fastdiff.q_sample.default,
    "q_sample_out": torch.ops.fastdiff.q_sample.out,
    "noise_loss": torch.ops.fastdiff.noise_loss.default,
    "noise_loss_backward": torch.ops.fastdiff.noise_loss_backward.default,
    "guidance_rescale": torch.ops.fastdiff.guidance_rescale.default,
    "threshold": torch.ops.fastdiff.threshold.default,
}


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


def _noise_loss_shape(pred: Tensor, key: Tensor, draw: Tensor, stream: int) -> Tensor:
    return pred.new_empty(pred.shape[0], dtype=torch.float32)


def _noise_loss_backward_shape(grad: Tensor, pred: Tensor, key: Tensor, draw: Tensor, stream: int) -> Tensor:
    return pred.new_empty(pred.shape)


def _one_per_sample(first: Tensor, *others: object) -> Tensor:
    return first.new_empty(first.shape[0], dtype=torch.float32)


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
    *tensors, stream = inputs
    ctx.save_for_backward(*tensors)
    ctx.stream = stream


@once_differentiable
def _noise_loss_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return OPS["noise_loss_backward"](grad, *ctx.saved_tensors, ctx.stream), None, None, None


_FAKES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("step", "normal_", "q_sample.out"), _nothing),
    "q_sample": _q_sample_shapes,
    "noise_loss": _noise_loss_shape,
    "noise_loss_backward": _noise_loss_backward_shape,
    **dict.fromkeys(("guidance_rescale", "threshold"), _one_per_sample),
}
for name, fake in _FAKES.items():
    torch.library.register_fake(f"fastdiff::{name}", fake, lib=LIBRARY)
torch.library.register_autograd("fastdiff::q_sample", _q_sample_backward, setup_context=_keep_levels, lib=LIBRARY)
torch.library.register_autograd(
    "fastdiff::noise_loss", _noise_loss_backward, setup_context=_keep_prediction, lib=LIBRARY
)
