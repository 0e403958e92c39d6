"""Pipelines of diffusers with the kernels: their scheduler replaced, or their whole loop."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import diffusers
import torch
from torch import Tensor, nn

from fastdiff.errors import InputError
from fastdiff.integrations import diffusers as schedulers
from fastdiff.integrations.diffusers.adapter import Adapter, Seed
from fastdiff.integrations.diffusers.whole_loop import Ended, Known, Network, Question, WholeLoop, running

Pipeline = TypeVar("Pipeline")


def accelerate(pipe: Pipeline, *, loop: bool = False, graph: bool = False, seed: Seed | None = None) -> Pipeline:
    """Do what `fastdiff.accelerate` says."""
    scheduler = getattr(pipe, "scheduler", None)
    if graph and not loop:
        raise InputError("graph=True captures the whole loop: pass loop=True too")
    kind: Any = type(pipe)
    looped = _looped(kind) if loop else kind
    ours = _scheduler(scheduler)
    ours.seed = seed
    setattr(pipe, "scheduler", ours)  # noqa: B010
    # A saved pipeline names diffusers' class, so that it can be loaded without this package.
    pipe.register_to_config(scheduler=("diffusers", type(ours).__name__))  # type: ignore[attr-defined]
    if loop:
        pipe.__class__ = looped
        vars(pipe)["captures"] = graph
    return pipe


def _scheduler(scheduler: Any) -> Adapter:
    """Return our scheduler of the name and configuration of another."""
    if isinstance(scheduler, Adapter):
        return scheduler
    kind = type(scheduler)
    ours = getattr(schedulers, kind.__name__, None) if kind.__name__ in schedulers.__all__ else None
    if ours is None or getattr(diffusers, kind.__name__, None) is not kind:
        known = ", ".join(name for name in schedulers.__all__ if name.endswith("Scheduler"))
        raise InputError(f"{kind.__name__} is no scheduler that is known here: use one of {known}")
    made: Adapter = ours.from_config(scheduler.config)
    return made


class Looped:
    """What a pipeline is besides once its loop is run in one go; see `whole_loop`."""

    captures: bool
    _network_name: ClassVar[str] = "unet"
    _asks: ClassVar[Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline, whose loop is one of `fastdiff.sample`.

        Raises:
            InputError: a callback is to be called after each step, or what the loop cannot do was asked for.
        """
        given = inspect.signature(super().__call__).bind(*args, **kwargs)  # type: ignore[misc]
        given.apply_defaults()
        asked = {**given.arguments, **given.arguments.get("kwargs", {})}
        for name in ("callback_on_step_end", "callback"):
            if asked.get(name) is not None:
                raise InputError(f"{name} cannot be called within a whole loop: use accelerate(pipe) without loop=True")
        progress = not getattr(self, "_progress_bar_config", {}).get("disable", False)
        loop = self._loop(asked, WholeLoop(self._network, graph=self.captures, progress=progress))
        token = running.set(loop)
        try:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        finally:
            running.reset(token)

    def _loop(self, asked: Mapping[str, Any], loop: WholeLoop) -> WholeLoop:
        """Return the loop of a call with the arguments `asked`."""
        return loop

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """Return what the pipeline goes through: the first of its steps, which is the whole loop."""
        steps = None if iterable is None else list(iterable)[:1]
        bar = super().progress_bar(steps, total if steps is None else None)  # type: ignore[misc]
        bar.disable = True
        return bar

    @functools.cached_property
    def _networks(self) -> dict[int, Network]:
        return {}

    def _network(self, network: nn.Module) -> Network:
        """Return a network as `fastdiff.sample` asks it, the same in each call, as the graphs of a loop are its."""
        if id(network) not in self._networks:
            self._networks.clear()
            self._networks[id(network)] = Network(network)
        return self._networks[id(network)]


class _Component:
    """A part of a pipeline, which has a stand-in before the loop (a network) or behind it (a scheduler)."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, pipe: Looped | None, owner: type) -> Any:
        if pipe is None:
            return self
        part, loop = vars(pipe)[self._name], running.get()
        if loop is None or loop.done != isinstance(part, Adapter):
            return part
        return Ended(part) if loop.done else Question(part, loop)

    def __set__(self, pipe: Looped, part: Any) -> None:
        vars(pipe)[self._name] = part


class _Unconditional(Looped):
    unet = _Component("unet")


class _DiT(Looped):
    transformer = _Component("transformer")

    def _loop(self, asked: Mapping[str, Any], loop: WholeLoop) -> WholeLoop:
        loop.guidance = asked["guidance_scale"]
        loop.conditional_first, loop.doubled = True, loop.guidance > 1
        return loop


class _StableDiffusion(Looped):
    unet = _Component("unet")
    do_classifier_free_guidance: bool
    guidance_scale: float

    def prepare_extra_step_kwargs(self, *args: Any, **kwargs: Any) -> Any:
        """Take the guidance of the call, which the pipeline knows by now."""
        loop = running.get()
        if loop is not None and self.do_classifier_free_guidance:
            loop.guidance = self.guidance_scale
            loop.guidance_rescale = getattr(self, "guidance_rescale", 0.0)
        return super().prepare_extra_step_kwargs(*args, **kwargs)  # type: ignore[misc]

    @property
    def interrupt(self) -> bool:
        """Whether the pipeline is to leave out a step: all those behind the first."""
        loop = running.get()
        return self._interrupt if loop is None else loop.done

    _interrupt: bool


class _Inpainting(_StableDiffusion):
    scheduler = _Component("scheduler")

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        """Note the image and the noise that it is given in every row, where the pipeline blends them in itself."""
        outputs = super().prepare_latents(*args, **kwargs)  # type: ignore[misc]
        loop = running.get()
        if loop is not None and len(outputs) == 3:
            _, noise, image = outputs
            loop.known = Known(image, torch.ones_like(image[:, :1]), noise)
        return outputs

    def prepare_mask_latents(self, *args: Any, **kwargs: Any) -> Any:
        """Note the mask, which is 1 where the image is to be made."""
        mask, masked_image = super().prepare_mask_latents(*args, **kwargs)  # type: ignore[misc]
        loop = running.get()
        if loop is not None and loop.known is not None:
            drawn: Tensor = mask[: len(loop.known.known)]
            loop.known = loop.known._replace(mask=1 - drawn)
        return mask, masked_image


_KINDS: dict[str, type[Looped]] = {
    "DDPMPipeline": _Unconditional,
    "DDIMPipeline": _Unconditional,
    "DiTPipeline": _DiT,
    "StableDiffusionPipeline": _StableDiffusion,
    "StableDiffusionImg2ImgPipeline": _StableDiffusion,
    "StableDiffusionInpaintPipeline": _Inpainting,
}


@functools.cache
def _looped(kind: type) -> type:
    """Return a pipeline's class whose loop is run in one go, and which is called and saved as before."""
    if issubclass(kind, Looped):
        return kind
    if kind.__name__ not in _KINDS or getattr(diffusers, kind.__name__, None) is not kind:
        raise InputError(
            f"the loop of {kind.__name__} is not known here, only those of {', '.join(_KINDS)}: "
            "use accelerate(pipe) without loop=True, which replaces its scheduler"
        )
    names = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (_KINDS[kind.__name__], kind), names)
