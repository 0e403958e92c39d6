"""Denoising networks of the library diffusers as networks of this one: `model(x, t, **cond) -> out`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.errors import InputError, lookup

EXTRA = "extra_channels"
# Sinusoids read these in float32: half precision would only take digits from them.
SINUSOIDAL = ("time_ids", "resolution", "aspect_ratio")


class DiffusersDenoiser(nn.Module):
    """`model(x, t, **cond) -> out` by a network of diffusers: x [B, C, H, W], t [B], out of the network's dtype.

    Conditions have diffusers' names, batch first; those of its `added_cond_kwargs` stand beside the others. One more,
    `extra_channels` [B, C', H, W], goes behind the channels of x into networks that read more than they denoise, such
    as mask and masked image where the network inpaints. x and conditions of floats are cast to the network's dtype.

    Attributes:
        network: diffusers' module, in the mode and on the device that it was.
        needs: the conditions that the network cannot do without.
        takes: the others that it knows.
    """

    added: tuple[str, ...] = ()
    packing = 1  # how many of the network's channels a channel of x is

    def __init__(self, network: Any, needs: Sequence[str], takes: Sequence[str] = ()) -> None:
        super().__init__()
        self.network: Any = network
        self.training = network.training
        self.needs, self.takes = tuple(needs), (*takes, EXTRA)
        labels_are_times = network.config.get("class_embed_type") == "timestep"
        self._kept = (*SINUSOIDAL, "class_labels") if labels_are_times else SINUSOIDAL

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Ask the network. Raises InputError for conditions that it does not know or lacks, and for other shapes."""
        self._check(x, t, cond)
        dtype = self.network.dtype
        given = {name: value if name in self._kept else _cast(value, dtype) for name, value in cond.items()}
        x = x.to(dtype)
        if EXTRA in given:
            x = torch.cat([x, given.pop(EXTRA)], dim=1)
        if self.added:
            given["added_cond_kwargs"] = {name: given.pop(name) for name in self.added if name in given}
        return self.ask(x, t, given)

    def ask(self, x: Tensor, t: Tensor, given: dict[str, Any]) -> Tensor:
        """Return what the network says of its whole input, its times and its own keyword arguments."""
        out: Tensor = self.network(x, timestep=t, **given, return_dict=False)[0]
        return out

    def unconditional(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """Return the condition without its content. Raises InputError, as only networks of classes know one."""
        raise InputError(
            f"{self._name} has no condition of its own for the other branch: give `uncond`, such as an empty prompt's"
        )

    @property
    def _name(self) -> str:
        return type(self.network).__name__

    def _check(self, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> None:
        known = (*self.needs, *self.takes)
        for name in cond:
            if name not in known:
                raise InputError(f"{self._name} knows no condition {name!r}: known are {', '.join(known)}")
        for name in self.needs:
            if cond.get(name) is None:
                raise InputError(f"{self._name} needs the condition {name!r}: put it into cond")
        extra = cond[EXTRA].shape[1] if EXTRA in cond else 0
        wanted = self.network.config.in_channels // self.packing - extra
        if x.ndim != 4 or x.shape[1] != wanted:
            raise InputError(
                f"x must be [B, {wanted}, H, W] for {self._name} with {extra} {EXTRA}, got {tuple(x.shape)}: "
                f"give what else it reads as the condition {EXTRA!r}"
            )
        if t.shape != x.shape[:1]:
            raise InputError(f"t must be [{len(x)}], one time a sample, got {tuple(t.shape)}")


class UNet2D(DiffusersDenoiser):
    """`UNet2DModel`, without or with classes."""

    def __init__(self, network: Any) -> None:
        super().__init__(network, _classes(network))

    def ask(self, x: Tensor, t: Tensor, given: dict[str, Any]) -> Tensor:
        learned = self.network.config.time_embedding_type == "learned"  # one vector for each whole time
        return super().ask(x, t.round().long() if learned else t, given)


class UNet2DCondition(DiffusersDenoiser):
    """`UNet2DConditionModel`: Stable Diffusion 1, 2 and XL, DeepFloyd IF, Kandinsky 2 and their like."""

    added = ("text_embeds", "time_ids", "image_embeds")
    _of_addition: Mapping[str, tuple[str, ...]] = {
        "none": (),
        "text": (),
        "text_time": ("text_embeds", "time_ids"),
        "text_image": ("image_embeds",),
        "image": ("image_embeds",),
    }
    _of_projection: Mapping[str, tuple[str, ...]] = {
        "none": ("encoder_hidden_states",),
        "text_proj": ("encoder_hidden_states",),
        "text_image_proj": ("encoder_hidden_states", "image_embeds"),
        "image_proj": ("image_embeds",),
    }

    def __init__(self, network: Any) -> None:
        config = network.config
        projection = lookup("encoder_hid_dim_type", config.encoder_hid_dim_type or "none", self._of_projection)
        addition = lookup("addition_embed_type", config.addition_embed_type or "none", self._of_addition)
        takes = ["attention_mask", "encoder_attention_mask", "cross_attention_kwargs"]
        if config.time_cond_proj_dim is not None:
            takes.append("timestep_cond")
        if config.addition_embed_type == "text_image":
            takes.append("text_embeds")
        super().__init__(network, tuple(dict.fromkeys((*projection, *addition, *_classes(network)))), takes)

    def ask(self, x: Tensor, t: Tensor, given: dict[str, Any]) -> Tensor:
        return super().ask(x, t, {"encoder_hidden_states": None, **given})


class DiT(DiffusersDenoiser):
    """`DiTTransformer2DModel` (Peebles & Xie 2023), whose last class is null; it draws squares."""

    def __init__(self, network: Any) -> None:
        super().__init__(network, ("class_labels",), ("cross_attention_kwargs",))

    def ask(self, x: Tensor, t: Tensor, given: dict[str, Any]) -> Tensor:
        if x.shape[2] != x.shape[3]:
            raise InputError(f"{self._name} of diffusers draws squares, got x {tuple(x.shape)}")
        return super().ask(x, t, given)

    def unconditional(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """Return the condition with every label replaced by the null class. Raises InputError without labels."""
        if "class_labels" not in cond:
            raise InputError(f"{self._name} needs the condition 'class_labels': put it into cond")
        null = self.network.config.num_embeds_ada_norm
        return {**cond, "class_labels": torch.full_like(cond["class_labels"], null)}


class PixArt(DiffusersDenoiser):
    """`PixArtTransformer2DModel`, alpha (Chen et al. 2023) and sigma."""

    added = ("resolution", "aspect_ratio")

    def __init__(self, network: Any) -> None:
        takes = ["encoder_attention_mask", "attention_mask", "cross_attention_kwargs"]
        sizes = self.added if network.use_additional_conditions else ()
        super().__init__(network, ("encoder_hidden_states", *sizes), takes)


class SD3(DiffusersDenoiser):
    """`SD3Transformer2DModel`, Stable Diffusion 3 and 3.5 (Esser et al. 2024)."""

    def __init__(self, network: Any) -> None:
        super().__init__(network, ("encoder_hidden_states", "pooled_projections"), ("joint_attention_kwargs",))


class Flux(DiffusersDenoiser):
    """`FluxTransformer2DModel`, FLUX.1: x [B, C, H, W] of even sides; the 2 x 2 packing and positions are made here.

    A network distilled with guidance needs the condition `guidance`, a number or [B]. Times are 0..1000.
    """

    packing = 4

    def __init__(self, network: Any) -> None:
        needs = ["encoder_hidden_states", "pooled_projections"]
        if network.config.guidance_embeds:
            needs.append("guidance")
        super().__init__(network, needs, ("joint_attention_kwargs",))

    def ask(self, x: Tensor, t: Tensor, given: dict[str, Any]) -> Tensor:
        height, width = x.shape[2] // 2, x.shape[3] // 2
        if x.shape[2:] != (2 * height, 2 * width):
            raise InputError(f"{self._name} packs 2 x 2 pixels: x must have even sides, got {tuple(x.shape)}")
        if "guidance" in given and not isinstance(given["guidance"], Tensor):
            given["guidance"] = x.new_full((len(x),), given["guidance"])
        words = x.new_zeros(given["encoder_hidden_states"].shape[1], 3)
        packed = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2).contiguous()
        times = t.to(x.dtype) / 1000  # rounded as the pipelines do
        out = super().ask(packed, times, {**given, "txt_ids": words, "img_ids": _positions(height, width, x.device)})
        return F.pixel_shuffle(out.transpose(1, 2).reshape(len(x), -1, height, width), 2)


def _transformer(network: Any) -> DiffusersDenoiser:
    """Wrap a `Transformer2DModel`, which was DiT and PixArt before these had classes of their own."""
    kinds: dict[str, Callable[[Any], DiffusersDenoiser]] = {"ada_norm_zero": DiT, "ada_norm_single": PixArt}
    if not network.is_input_patches:
        raise InputError("this Transformer2DModel is a part of a network: give one with a patch_size, DiT or PixArt")
    return lookup("norm_type of a Transformer2DModel", network.config.norm_type, kinds)(network)


WRAPPERS: Mapping[str, Callable[[Any], DiffusersDenoiser]] = {
    "UNet2DModel": UNet2D,
    "UNet2DConditionModel": UNet2DCondition,
    "DiTTransformer2DModel": DiT,
    "Transformer2DModel": _transformer,
    "PixArtTransformer2DModel": PixArt,
    "SD3Transformer2DModel": SD3,
    "FluxTransformer2DModel": Flux,
}


def wrapped(network: nn.Module) -> DiffusersDenoiser:
    """Return a network of diffusers as one of this library. Raises InputError for a class that is not known."""
    names = [kind.__name__ for kind in type(network).__mro__]
    found = next((WRAPPERS[name] for name in names if name in WRAPPERS), None)
    if found is None:
        raise InputError(f"{names[0]} is no known denoiser of diffusers: known are {', '.join(WRAPPERS)}")
    return found(network)


def _classes(network: Any) -> tuple[str, ...]:
    return () if network.class_embedding is None else ("class_labels",)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """Return (0, row, column) of each packed pixel, [height * width, 3]."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    grid = torch.meshgrid(torch.zeros_like(rows[:1]), rows, columns, indexing="ij")
    return torch.stack(grid, dim=-1).flatten(0, 2)
