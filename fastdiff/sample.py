"""Sampling: network, step, network, step. It knows no sampler by name and never waits for the device between rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastdiff import conditioning
from fastdiff import graph as graphs
from fastdiff import noise as noises
from fastdiff.conditioning import Images
from fastdiff.errors import BackendError, InputError
from fastdiff.guidance.branches import Condition, Model, conditions
from fastdiff.guidance.rules import CFG, Scale, as_rule, w_of_rows
from fastdiff.loop import Inputs, Loop, NoiseSource, Setup, for_each_sample, given, raise_if_bad
from fastdiff.ops import dispatch
from fastdiff.plan import Plan

Callback = Callable[[int, Tensor, Tensor], None]
Decode = Callable[[Tensor], Tensor]


@torch.no_grad()
def sample(
    model: Model,
    plan: Plan,
    shape: Sequence[int],
    *,
    seed: int | Sequence[int] | Tensor = 0,
    index: int | Sequence[int] | Tensor | None = None,
    cond: Condition | None = None,
    uncond: Condition | None = None,
    guidance: Scale | CFG = 1.0,
    guidance_rescale: float = 0.0,
    dynamic_threshold: float | None = None,
    x_init: Tensor | None = None,
    x0_init: Tensor | None = None,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    known_noise: Tensor | None = None,
    decode: Decode | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    noise: NoiseSource | None = None,
    progress: bool = False,
    callback: Callback | None = None,
    check_finite: bool = True,
    normals: str = "exact",
    graph: bool = False,
) -> Tensor:
    """Run a plan from noise (or from `x_init` or `x0_init`) to data.

    Args:
        model: `model(x, t, **cond) -> out`; x [B, ...] in `dtype`, t [B] from the plan in the dtype of the state, out
            of the shape of x (twice the channels where the network learns its variance).
        plan: the sampler's table.
        shape: (B, ...) of the samples.
        seed: one seed for all samples or one each, 0..2^64-1.
        index: global index of each sample; None is 0..B-1. A sample depends on its own seed and index alone.
        cond: keyword arguments of the model; tensors have the batch first.
        uncond: the same for the unconditional branch, which may be a negative condition; None asks the model for
            `model.unconditional(cond)`.
        guidance: w of `u + w (c - u)`, or a rule of `fastdiff.guidance`: `CFG`, which says what w may be and where it
            guides, `APG` or `CFGZero`. The number 1 evaluates the conditional branch alone.
        guidance_rescale: phi in 0..1, how far the guided output is scaled to the standard deviation of the conditional
            one (Lin et al. 2024, eq. 15 and 16); it needs `CFG`. 0 leaves it alone.
        dynamic_threshold: quantile in 0..1 of a sample's |x0|; where it exceeds the plan's clip, x0 is cut there and
            scaled back to the clip (Saharia et al. 2022, sec. 2.3). It needs a plan that clips. None only clips.
        x_init: start state [B, ...] instead of noise.
        x0_init: clean data to start from: they are noised to the level of the plan's first row (SDEdit, Meng et al.
            2022), which the option `start` of samplers chooses. They broadcast to `shape`, as do known and mask.
        known: clean data to keep where `mask` is 1: every row puts them at the noise level that it lands on (Lugmayr et
            al. 2022, eq. 8), and so they are in the result where the plan ends on clean data.
        mask: 1 where data are known, 0 where they are drawn, or between for a blend of both.
        known_noise: noise [B, ...] that the known data have in every row, as in Stable Diffusion's inpainting; None
            draws it anew in each. It broadcasts to `shape`, too.
        decode: what makes data of samples that are latents, such as `Checkpoint.decode`; it is given the last state.
            x_init, x0_init, known, mask, known_noise and callback are of latents.
        device: None is that of x_init or x0_init, or of the model's parameters, or the CPU.
        dtype: what the model reads. The state is float32, or float64 if this is float64.
        backend: "auto" or a backend's name; see `fastdiff.info`.
        noise: callable (stream, draw, shape) -> z that replaces the built-in noise; stream is "init" or "step" and
            draw is the row.
        progress: show a bar with rows per second where the output is a terminal.
        callback: called after each row with (row, x, x0); clone what you keep.
        check_finite: raise where NaN or infinity appeared, naming the row. Checked on the device, read once at the end;
            what images hold is read before the first row in any case.
        normals: "exact", or "fast" on the backends triton and cuda: the noise of the steps (not the first state) by the
            hardware's log, sine and cosine. It is as good, and not the same bits as anywhere else.
        graph: capture the whole loop as one CUDA graph, and from then on replay it; see `fastdiff.graph`.

    Returns:
        Samples of `shape`, float32 (float64 for dtype float64); with `decode`, what it makes of them.

    Raises:
        InputError: shapes, conditions or names do not match, or the model cannot be captured.
        BackendError: the backend is not available, or has no fast normals or no graphs.
        NonFiniteError: the start state, a model output or a state is not finite.
    """
    if len(shape) < 2 or min(shape) < 0:
        raise InputError(f"shape must be (batch, ...) with no negative size, got {tuple(shape)}")
    if decode is not None and not callable(decode):
        raise InputError(f"decode must be a function of the samples, got {decode!r}")
    images = conditioning.consistent(Images(x_init, x0_init, known, mask, known_noise))
    place = place_of(model, x_init if x0_init is None else x0_init, device)
    batch, state_dtype = int(shape[0]), torch.promote_types(dtype, torch.float32)
    images = conditioning.checked(images, plan, tuple(shape), place, state_dtype)
    key = noises.key(seed, index, batch, place)
    rule = as_rule(guidance)
    w, alone = w_of_rows(rule, plan, batch, place, state_dtype)
    setup = Setup(
        plan=plan if known is None else conditioning.inpainting(plan, known_noise is not None),
        shape=tuple(shape),
        device=place,
        dtype=dtype,
        backend=dispatch.resolve(backend, place, state_dtype),
        branches=1 if len(alone) == len(plan) else 2,
        rule=rule.method,
        alone=alone,
        guidance_rescale=guidance_rescale,
        dynamic_threshold=dynamic_threshold,
        check_finite=check_finite,
        normals=normals,
    )
    condition = conditions(model, cond or {}, uncond, setup.branches, batch)
    inputs = Inputs(key, None if setup.branches == 1 else for_each_sample(w, batch), condition, images)
    if graph:
        _check_unobserved(noise, progress, callback)
        x, first_bad = graphs.run(model, setup, inputs)
    else:
        loop = Loop(setup, inputs, keeps_x0=callback is not None)
        _run(loop, model, noise, progress, callback)
        x, first_bad = loop.x, loop.first_bad
    if first_bad is not None:
        raise_if_bad(first_bad, plan)
    return x if decode is None else decode(x)


def _run(loop: Loop, model: Model, noise: NoiseSource | None, progress: bool, callback: Callback | None) -> None:
    plan = loop.setup.plan
    loop.start(noise)
    for row in tqdm(range(len(plan)), desc="sample", unit="row", disable=None if progress else True):
        z = given(noise, "step", row, loop.x.shape).to(loop.x) if noise is not None and plan.draws_noise else None
        loop.row(row, model, z)
        del z  # or it would still take memory while the network makes the next output
        if callback is not None and loop.x0 is not None:
            callback(row, loop.x, loop.x0)


def place_of(model: object, image: Tensor | None, device: torch.device | str | None) -> torch.device:
    """Return where to run: on the device named, or where the image is, or the model's parameters, or the CPU.

    It has its number, which a name may leave out and a tensor knows. Raises BackendError if it cannot be used.
    """
    if device is None:
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        there = parameter if image is None else image
        device = "cpu" if there is None else there.device
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        raise BackendError(f"device {device} cannot be used: {str(error).splitlines()[0]}") from None


def _check_unobserved(noise: NoiseSource | None, progress: bool, callback: Callback | None) -> None:
    for name, used in (("callback", callback is not None), ("noise", noise is not None), ("progress", progress)):
        if used:
            raise InputError(f"graph=True replays the whole loop at once, with no row to stop at: leave {name} out")
