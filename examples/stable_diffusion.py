"""Stable Diffusion in one loop, from text and around a mask: python examples/stable_diffusion.py --out sd.png"""

import argparse
import json
import tempfile
from pathlib import Path

import diffusers
import torch
import transformers

import fastdiff as fd
from fastdiff import pictures


def tiny_tokenizer() -> transformers.CLIPTokenizer:
    """Return a tokenizer that knows single letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({word: k for k, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        return transformers.CLIPTokenizer(str(vocabulary), str(merges), model_max_length=16)


def tiny_parts() -> dict:
    """Return the parts of a pipeline, with random weights for want of a download."""
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        latent_channels=4,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
    )
    return {
        "vae": vae,
        "text_encoder": transformers.CLIPTextModel(text),
        "tokenizer": tiny_tokenizer(),
        "unet": unet,
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
    }


def main(out: str) -> None:
    text = fd.accelerate(diffusers.StableDiffusionPipeline(**tiny_parts(), requires_safety_checker=False), loop=True)
    inpaint = diffusers.StableDiffusionInpaintPipeline(**text.components, requires_safety_checker=False)
    fd.accelerate(inpaint, loop=True)  # it shares the scheduler, and all else, with the first
    call = {"prompt": ["a b", "c d", "e f", "g h"], "num_inference_steps": 10, "output_type": "pt"}
    images = text(**call, generator=torch.Generator().manual_seed(1)).images
    mask = torch.zeros(4, 1, 32, 32)
    mask[..., 16:] = 1  # the right half is to be made anew
    call["strength"] = 0.9
    others = inpaint(
        **call, image=images, mask_image=mask, height=32, width=32, generator=torch.Generator().manual_seed(2)
    ).images
    shown = torch.cat([images, others]).mean(dim=1, keepdim=True)
    shown = (shown - shown.min()) / (shown.max() - shown.min())  # from black to white, as these say little in colour
    pictures.save(shown * 2 - 1, out, columns=4)
    print(f"wrote {out}: four images of a random network, and the same with their right halves made anew")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="stable_diffusion.png", help="PNG to write")
    main(parser.parse_args().out)
