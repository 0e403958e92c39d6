"""Denoisers of diffusers, tiny and random: asked as its pipelines ask them, and whole loops beside its schedulers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fastdiff as fd
from fastdiff.errors import CheckpointError, InputError, MissingDependencyError
from fastdiff.plan import Plan

BATCH, SIDE = 2, 8
SINUSOIDAL = ("time_ids", "resolution", "aspect_ratio")
Condition = dict[str, Any]
Ask = Callable[[Any, Tensor, Tensor, Condition], Tensor]


class Case(NamedTuple):
    """A network, its conditions with their shapes behind the batch, and how a pipeline asks it."""

    kind: str
    config: dict[str, Any]
    condition: dict[str, tuple[int, ...]]
    ask: Ask
    channels: int = 4
    outputs: int = 1


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(kind: str, config: Mapping[str, Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return getattr(diffusers, kind)(**config).eval()


def condition_of(case: Case, seed: int = 0) -> Condition:
    """Random conditions: labels, sizes of images and times, masks, and otherwise normal numbers."""
    found: Condition = {}
    for name, shape in case.condition.items():
        values = numbers((BATCH, *shape), seed + len(found))
        if name in SINUSOIDAL or case.config.get("class_embed_type"):
            found[name] = 512 + (values * 100).round()
        elif name == "class_labels":
            found[name] = torch.tensor([1, 3]) if seed == 0 else torch.tensor([0, 2])
        elif name == "encoder_attention_mask":
            found[name] = torch.tensor([[1, 1, 0], [1, 1, 1]])
        else:
            found[name] = values
    return found


def plainly(network: Any, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """What most pipelines do."""
    out: Tensor = network(x, timestep=t, **cond, return_dict=False)[0]
    return out


def with_added(*names: str) -> Ask:
    """Some conditions go into a dictionary."""

    def ask(network: Any, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        rest = {name: value for name, value in cond.items() if name not in names}
        return plainly(network, x, t, {**rest, "added_cond_kwargs": {name: cond[name] for name in names}})

    return ask


def inpainting(network: Any, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """Mask and masked image are behind the channels of x."""
    x = torch.cat([x, cond["extra_channels"]], dim=1)
    return plainly(network, x, t, {"encoder_hidden_states": cond["encoder_hidden_states"]})


def without_text(network: Any, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """Kandinsky 2.2."""
    return plainly(network, x, t, {"encoder_hidden_states": None, "added_cond_kwargs": cond})


def packed(network: Any, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """FLUX: squares of 2 x 2 are tokens of 4 C numbers, each with its place; FLUX Fill has more behind them."""
    (batch, _, height, width), rest = x.shape, dict(cond)

    def pack(image: Tensor) -> Tensor:
        tiles = image.view(batch, -1, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        return tiles.reshape(batch, height * width // 4, -1)

    tokens = pack(x)
    if "extra_channels" in rest:
        tokens = torch.cat([tokens, pack(rest.pop("extra_channels"))], dim=2)
    places = torch.tensor([[0, row, column] for row in range(height // 2) for column in range(width // 2)]).float()
    words = torch.zeros(rest["encoder_hidden_states"].shape[1], 3)
    out = plainly(network, tokens, t.to(x.dtype) / 1000, {**rest, "img_ids": places, "txt_ids": words})
    return (
        out.view(batch, height // 2, width // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)
    )


SMALL: dict[str, Any] = {"block_out_channels": (8, 8), "norm_num_groups": 4, "attention_head_dim": 4}
SMALL |= {"layers_per_block": 1, "sample_size": SIDE}
UNET = SMALL | {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "in_channels": 4, "out_channels": 4}
UNET |= {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
TEXT_UNET = SMALL | {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 6}
TEXT_UNET |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "sample_size": SIDE}
DIT = HEADS | {"in_channels": 4, "out_channels": 8, "norm_num_groups": 4, "num_embeds_ada_norm": 5}
LEGACY = DIT | {"patch_size": 2, "norm_type": "ada_norm_zero", "norm_elementwise_affine": False}
PIXART = HEADS | {"out_channels": 8, "norm_num_groups": 4, "cross_attention_dim": 16, "caption_channels": 6}
SIZES: dict[str, tuple[int, ...]] = {"resolution": (2,), "aspect_ratio": (1,)}
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 29}
IMAGES = {"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 5}
MMDIT = HEADS | {"joint_attention_dim": 6, "caption_projection_dim": 16, "pooled_projection_dim": 5}
FLUX = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_single_layers": 1}
FLUX |= {"joint_attention_dim": 6, "pooled_projection_dim": 5, "in_channels": 16, "axes_dims_rope": (2, 2, 4)}
PROMPT = {"encoder_hidden_states": (3, 6)}
POOLED = PROMPT | {"pooled_projections": (5,)}
LABELS: dict[str, tuple[int, ...]] = {"class_labels": ()}

CASES = {
    "unet": Case("UNet2DModel", UNET, {}, plainly),
    "unet of classes": Case("UNet2DModel", UNET | {"num_class_embeds": 5}, LABELS, plainly),
    "two times and text": Case(
        "UNet2DConditionModel", TEXT_UNET | {"class_embed_type": "timestep"}, PROMPT | LABELS, plainly
    ),
    "unet of learned times": Case(
        "UNet2DModel", UNET | {"time_embedding_type": "learned", "num_train_timesteps": 1000}, {}, plainly
    ),
    "unet of sigmas": Case("UNet2DModel", UNET | {"time_embedding_type": "fourier"}, {}, plainly),
    "stable diffusion": Case("UNet2DConditionModel", TEXT_UNET, PROMPT, plainly),
    "mask": Case("UNet2DConditionModel", TEXT_UNET, PROMPT | {"encoder_attention_mask": (3,)}, plainly),
    "xl": Case(
        "UNet2DConditionModel",
        TEXT_UNET | XL,
        PROMPT | {"text_embeds": (5,), "time_ids": (6,)},
        with_added("text_embeds", "time_ids"),
    ),
    "inpainting": Case(
        "UNet2DConditionModel", TEXT_UNET | {"in_channels": 9}, PROMPT | {"extra_channels": (5, SIDE, SIDE)}, inpainting
    ),
    "labels and text": Case("UNet2DConditionModel", TEXT_UNET | {"num_class_embeds": 5}, PROMPT | LABELS, plainly),
    "latent consistency": Case(
        "UNet2DConditionModel", TEXT_UNET | {"time_cond_proj_dim": 7}, PROMPT | {"timestep_cond": (7,)}, plainly
    ),
    "kandinsky": Case("UNet2DConditionModel", TEXT_UNET | IMAGES, {"image_embeds": (5,)}, without_text),
    "dit": Case("DiTTransformer2DModel", DIT, LABELS, plainly, outputs=2),
    "transformer": Case("Transformer2DModel", LEGACY, LABELS, plainly, outputs=2),
    "pixart": Case("PixArtTransformer2DModel", PIXART, PROMPT | {"encoder_attention_mask": (3,)}, plainly, outputs=2),
    "pixart of sizes": Case(
        "PixArtTransformer2DModel",
        PIXART | {"use_additional_conditions": True, "num_attention_heads": 3, "cross_attention_dim": 24},
        PROMPT | SIZES,
        with_added(*SIZES),
        outputs=2,
    ),
    "sd3": Case("SD3Transformer2DModel", MMDIT, POOLED, plainly, channels=16),
    "flux": Case("FluxTransformer2DModel", FLUX | {"guidance_embeds": True}, POOLED | {"guidance": ()}, packed),
    "flux schnell": Case("FluxTransformer2DModel", FLUX, POOLED, packed),
    "flux fill": Case(
        "FluxTransformer2DModel",
        FLUX | {"in_channels": 44, "out_channels": 16},
        POOLED | {"extra_channels": (7, SIDE, SIDE)},
        packed,
    ),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_asked_as_the_pipelines_ask(name: str, tmp_path: Path) -> None:
    """The same bits; and the conditions count. The network from a folder is that network."""
    case = CASES[name]
    network, cond = build(case.kind, case.config), condition_of(case)
    x, t = numbers((BATCH, case.channels, SIDE, SIDE), 5), torch.tensor([801.0, 20.0])
    expected = case.ask(network, x, t.long() if name == "unet of learned times" else t, cond)
    model = fd.models.from_diffusers(network)
    assert model.network is network and not model.training
    assert expected.shape == (BATCH, case.outputs * case.channels, SIDE, SIDE)
    assert torch.equal(model(x, t, **cond), expected)
    for condition, other in condition_of(case, seed=10).items():
        if condition != "encoder_attention_mask":
            assert not torch.equal(model(x, t, **{**cond, condition: other}), expected), condition
    network.save_pretrained(tmp_path / "unet")
    loaded = fd.models.from_diffusers(tmp_path)
    assert not loaded.training
    assert torch.equal(loaded(x, t, **cond), expected)


HALVED = ["two times and text", "stable diffusion", "xl", "inpainting", "pixart of sizes", "dit", "sd3", "flux"]


@pytest.mark.parametrize("name", HALVED)
@torch.no_grad()
def test_half_precision(name: str) -> None:
    """A bfloat16 network is given bfloat16 and says it; its times and sizes of images keep their digits."""
    case = CASES[name]
    network, cond = build(case.kind, case.config).bfloat16(), condition_of(case)
    x, t = numbers((BATCH, case.channels, SIDE, SIDE), 5), torch.tensor([801.0, 20.0])
    kept = (*SINUSOIDAL, "class_labels")
    halved = {name: value if name in kept else value.bfloat16() for name, value in cond.items()}
    out = fd.models.from_diffusers(network)(x, t, **cond)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, case.ask(network, x.bfloat16(), t, halved))


@torch.no_grad()
def test_double_precision() -> None:
    """A float64 network is sampled in float64."""
    case = CASES["xl"]
    model = fd.models.from_diffusers(build(case.kind, case.config).double())
    plan, shape = fd.samplers.ddim(SCHEDULE, 2), (BATCH, 4, SIDE, SIDE)
    assert fd.sample(model, plan, shape, cond=condition_of(case), dtype=torch.float64).dtype == torch.float64


# --- whole loops

SCHEDULE = fd.schedules.scaled_linear(1000)
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
W, STEPS = 3.0, 10
# Both are float32, whose roundings guidance and ten steps grow; measured: 1.1e-6.
TOLERANCE = 1e-5


class Run(NamedTuple):
    """A plan, and diffusers' scheduler with the options of `set_timesteps`."""

    plan: Plan
    scheduler: Any
    timesteps: dict[str, Any]


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def run(sampler: str) -> Run:
    if sampler == "ddim":
        ddim = diffusers.DDIMScheduler(**BETAS, timestep_spacing="trailing", clip_sample=False)
        return Run(fd.samplers.ddim(SCHEDULE, STEPS, spacing="trailing", clip=None), ddim, {})
    if sampler == "euler":
        euler = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading")
        return Run(fd.samplers.euler(SCHEDULE, STEPS, spacing="leading", clip=None), euler, {})
    mu = 1.1
    flow = fd.schedules.flow(1000, shift=float(np.exp(mu)))
    flow = flow.with_time(1000 * flow.sigma)
    plan = fd.samplers.euler(flow, STEPS, spacing="trailing", prediction="flow", clip=None)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return Run(plan, scheduler, {"sigmas": np.linspace(1, 1 / STEPS, STEPS), "mu": mu})


LOOPS = {
    "unet": "ddim",
    "stable diffusion": "euler",
    "xl": "euler",
    "inpainting": "ddim",
    "dit": "ddim",
    "pixart": "ddim",
    "sd3": "flow",
    "flux": "flow",
}


@pytest.mark.parametrize(("name", "sampler"), LOOPS.items())
@torch.no_grad()
def test_loop_of_a_pipeline(name: str, sampler: str) -> None:
    """Network, guidance, scheduler's step: every state of `fastdiff.sample` is diffusers'."""
    case = CASES[name]
    network, cond, other = build(case.kind, case.config), condition_of(case), condition_of(case, seed=10)
    guided = "encoder_hidden_states" in cond or name == "dit"
    uncond = None if name == "dit" else {**other, **{n: cond[n] for n in ("guidance",) if n in cond}}
    plan, scheduler, timesteps = run(sampler)
    start, found = numbers((BATCH, 4 if name != "sd3" else 16, SIDE, SIDE), 3), []
    fd.sample(
        fd.models.from_diffusers(network),
        plan,
        start.shape,
        x_init=start,
        cond=cond,
        uncond=uncond,
        guidance=W if guided else 1.0,
        callback=lambda row, x, x0: found.append(x.clone()),
    )

    scheduler.set_timesteps(**({} if timesteps else {"num_inference_steps": STEPS}), **timesteps)
    # Theirs is Euler's over alpha, and ours to the scale of the network.
    scales = plan.alpha if sampler == "euler" else np.ones(STEPS + 1)
    x = start * float(getattr(scheduler, "init_noise_sigma", 1.0))
    null = {"class_labels": torch.full((BATCH,), 5)} if uncond is None else uncond
    for row, t in enumerate(scheduler.timesteps):
        read = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = case.ask(network, read, t.expand(BATCH), cond)[:, : x.shape[1]]
        if guided:
            without = case.ask(network, read, t.expand(BATCH), null)[:, : x.shape[1]]
            out = without + W * (out - without)
        x = scheduler.step(out, t, x, return_dict=False)[0]
        assert relative(found[row], x * scales[row + 1]) < TOLERANCE, row
    assert len(found) == STEPS


def test_learned_variance() -> None:
    """The second half of a DiT's channels is the v of "learned_range". The peer adds noise in its last row too."""
    case = CASES["dit"]
    network, cond = build(case.kind, case.config), condition_of(case)
    plan = fd.samplers.ddpm(SCHEDULE, STEPS, variance="learned_range", spacing="trailing", clip=None)
    shape = (BATCH, 4, SIDE, SIDE)
    x, drawn, found = numbers(shape, 3), [numbers(shape, 20 + row) for row in range(STEPS)], []
    fd.sample(
        fd.models.from_diffusers(network),
        plan,
        shape,
        x_init=x,
        cond=cond,
        noise=lambda stream, row, shape: drawn[row],
        callback=lambda row, x, x0: found.append(x.clone()),
    )
    options: dict[str, Any] = {"variance_type": "learned_range", "clip_sample": False}
    scheduler = diffusers.DDPMScheduler(**BETAS, **options, timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: drawn[row])
        for row, t in enumerate(scheduler.timesteps[:-1]):
            x = scheduler.step(plainly(network, x, t.expand(BATCH), cond), t, x, return_dict=False)[0]
            assert relative(found[row], x) < TOLERANCE, row


def test_guidance_as_a_number() -> None:
    """The scale that FLUX was distilled with is one for all samples, or one each."""
    case = CASES["flux"]
    model, cond = fd.models.from_diffusers(build(case.kind, case.config)), condition_of(case)
    plan, shape = run("flow").plan, (BATCH, 4, SIDE, SIDE)
    each = fd.sample(model, plan, shape, cond={**cond, "guidance": torch.full((BATCH,), 3.5)})
    assert torch.equal(fd.sample(model, plan, shape, cond={**cond, "guidance": 3.5}), each)


# --- what is refused


def refused(message: str, error: type[Exception], act: Callable[[], object]) -> None:
    with pytest.raises(error, match=message) as raised:
        act()
    assert "\n" not in str(raised.value)


def test_conditions_are_checked() -> None:
    """Names, shapes and the missing unconditional branch, one line each."""
    case = CASES["stable diffusion"]
    model, cond = fd.models.from_diffusers(build(case.kind, case.config)), condition_of(case)
    x, t = numbers((BATCH, 4, SIDE, SIDE), 5), torch.ones(BATCH)
    refused("knows no condition 'prompt': known are encoder_hidden_states", InputError, lambda: model(x, t, prompt="a"))
    refused("needs the condition 'encoder_hidden_states'", InputError, lambda: model(x, t))
    refused(r"x must be \[B, 4, H, W\] .* with 0 extra_", InputError, lambda: model(x[:, :3], t, **cond))
    refused(r"t must be \[2\]", InputError, lambda: model(x, t[:1], **cond))
    refused("give `uncond`", InputError, lambda: model.unconditional(cond))
    dit = fd.models.from_diffusers(build("DiTTransformer2DModel", DIT))
    labels = condition_of(CASES["dit"])
    refused("draws squares", InputError, lambda: dit(x[..., :4], t, **labels))
    refused("needs the condition 'class_labels'", InputError, lambda: dit.unconditional({}))
    flux = fd.models.from_diffusers(build("FluxTransformer2DModel", FLUX))
    prompts = condition_of(CASES["flux schnell"])
    refused("even sides", InputError, lambda: flux(x[..., :3], t, **prompts))
    refused("knows no condition 'guidance'", InputError, lambda: flux(x, t, **prompts, guidance=3.0))


def test_other_networks_are_refused() -> None:
    """Classes that are not known, and kinds of known ones."""

    def give(network: nn.Module, **options: Any) -> Callable[[], object]:
        return lambda: fd.models.from_diffusers(network, **options)

    refused("Linear is no known denoiser of diffusers: known are UNet2DModel", InputError, give(nn.Linear(1, 1)))
    part = build("Transformer2DModel", {"in_channels": 8, "norm_num_groups": 4, "attention_head_dim": 4})
    refused("a part of a network", InputError, give(part))
    hint = TEXT_UNET | {"addition_embed_type": "image_hint", "encoder_hid_dim": 5}
    refused("unknown addition_embed_type 'image_hint'", InputError, give(build("UNet2DConditionModel", hint)))
    refused("for folders", InputError, give(build("UNet2DModel", UNET), dtype=torch.float16))


def test_folders(tmp_path: Path) -> None:
    """A pipeline's folder, other dtypes and variants; weights that lack, are damaged, pickled or of another class."""
    folder = tmp_path / "transformer"

    def load(**options: Any) -> Callable[[], object]:
        return lambda: fd.models.from_diffusers(tmp_path, **options)

    missing = str(tmp_path / "stable-diffusion")
    refused("is no local folder, and nothing is down", CheckpointError, lambda: fd.models.from_diffusers(missing))
    refused("holds no config.json, nor do its folders unet and transformer", CheckpointError, load())
    network = build("DiTTransformer2DModel", DIT)
    network.half().save_pretrained(folder)
    assert fd.models.from_diffusers(str(folder)).network.dtype == torch.float32
    assert fd.models.from_diffusers(tmp_path, dtype=torch.bfloat16).network.dtype == torch.bfloat16
    weights = folder / "diffusion_pytorch_model.safetensors"
    whole = load_file(weights)
    save_file({name: value for name, value in whole.items() if "proj_out_2" not in name}, weights)
    refused("does not hold the weights .*: no proj_out_2", CheckpointError, load())
    save_file({**whole, "proj_out_2.bias": torch.zeros(3)}, weights)
    refused("does not hold the weights .*proj_out_2.bias", CheckpointError, load())
    weights.write_bytes(weights.read_bytes()[:-1])
    refused("does not hold the weights", CheckpointError, load())
    weights.unlink()
    torch.save(whole, weights.with_suffix(".bin"))
    refused("holds no safetensors file", CheckpointError, load())
    network.save_pretrained(folder, variant="fp16")
    refused("does not hold the weights", CheckpointError, load())
    assert fd.models.from_diffusers(tmp_path, variant="fp16", device="cpu").network.dtype == torch.float32
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "AutoencoderKL"}))
    refused("holds 'AutoencoderKL', no known denoiser: known are UNet2D", InputError, load())
    config.write_text("[]")
    refused("holds 'nothing', no known denoiser", InputError, load())
    config.write_text("{")
    refused("config.json cannot be read", CheckpointError, load())


def test_old_class_in_a_folder(tmp_path: Path) -> None:
    """A Transformer2DModel that is a DiT is loaded as one, as diffusers does."""
    build("Transformer2DModel", LEGACY).save_pretrained(tmp_path)
    assert type(fd.models.from_diffusers(tmp_path).network).__name__ == "DiTTransformer2DModel"


def test_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to get it."""
    build("UNet2DModel", UNET).save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependencyError, match="needs diffusers"):
        fd.models.from_diffusers(tmp_path)
