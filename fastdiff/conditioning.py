"""Samples that begin with data: from noised images (img2img), or around a region that is known (inpainting)."""

from __future__ import annotations

from typing import NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor

from fastdiff.errors import InputError, NonFiniteError
from fastdiff.plan import Plan


class Images(NamedTuple):
    """What a run may be given of the size of its samples; None is not given.

    Attributes:
        x_init: start state instead of noise.
        x0_init: clean data that the start state is made of, with noise.
        known, mask: clean data, and how much of it each element keeps, 0..1.
        known_noise: the noise that the known data get.
    """

    x_init: Tensor | None = None
    x0_init: Tensor | None = None
    known: Tensor | None = None
    mask: Tensor | None = None
    known_noise: Tensor | None = None


def consistent(images: Images) -> Images:
    """Return images. Raises InputError if one is no tensor, one lacks what it goes with, or there are two starts."""
    for name, image in images._asdict().items():
        if image is not None and not isinstance(image, Tensor):
            raise InputError(f"{name} must be a tensor, got {type(image).__name__}")
    if images.x_init is not None and images.x0_init is not None:
        raise InputError("x_init and x0_init both say where to start: give one of them")
    if (images.known is None) != (images.mask is None):
        raise InputError("inpainting needs both known and mask")
    if images.known_noise is not None and images.known is None:
        raise InputError("known_noise is the noise of known data: give known and mask too")
    return images


def checked(images: Images, plan: Plan, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Images:
    """Return images as a loop reads them: x_init as it is, the others dense, of `shape`, and where the state is.

    Raises:
        InputError: a shape does not fit, a mask is not in 0..1, or a plan without levels cannot say how noisy the data
            should be.
        NonFiniteError: an image holds NaN or infinity.
    """
    x_init, *others = images
    if x_init is not None and tuple(x_init.shape) != shape:
        raise InputError(f"x_init must have the shape of the samples, {shape}, got {tuple(x_init.shape)}")
    if not plan.sigma.size and any(image is not None for image in others):
        raise InputError(f"{plan.name} does not know how noisy its rows are: use a plan of fastdiff.samplers")
    for name, image in images._asdict().items():
        if image is not None and not bool(image.isfinite().all()):
            raise NonFiniteError(f"{name} holds NaN or infinity")
    if images.mask is not None and not bool(((images.mask >= 0) & (images.mask <= 1)).all()):
        raise InputError("mask must be in 0..1: 1 where the data are known")
    dense = (
        image if image is None else _dense(name, image, shape, device, dtype)
        for name, image in zip(Images._fields[1:], others, strict=True)
    )
    return Images(x_init, *dense)


def _dense(name: str, image: Tensor, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    try:
        whole = image.expand(shape)
    except RuntimeError:
        got = tuple(image.shape)
        raise InputError(f"{name} must broadcast to the shape of the samples, {shape}, got {got}") from None
    return whole.to(device=device, dtype=dtype).resolve_neg().contiguous()


def start(plan: Plan, images: Images) -> Plan:
    """Return the plan of one row that makes the start state and the first input of the network.

    Its x is noise, or x_init; its y is x0_init, which it brings to the noise level of the first row.
    """
    scale_in = plan.column("scale_in")[0]
    if images.x0_init is not None:
        return Plan.build("start", [0.0], {"cx": plan.sigma[0], "cy": plan.alpha[0], "scale_in": scale_in})
    scale = plan.init_scale if images.x_init is None else 1.0
    return Plan.build("start", [0.0], {"cx": scale, "scale_in": scale_in})


def inpainting(plan: Plan, noise_given: bool = False) -> Plan:
    """Return a plan whose rows also bring what is known to the noise level that they land on, or find it there."""
    columns = {name: plan.column(name) for name in plan.columns}
    known: dict[str, npt.ArrayLike] = {"k0": 1.0} if noise_given else {"k0": plan.alpha[1:], "kz": plan.sigma[1:]}
    return Plan.build(
        *(plan.name, plan.t, {**columns, **known}),
        init_scale=plan.init_scale,
        stores=plan.stores,
        alpha=plan.alpha,
        sigma=plan.sigma,
    )
