"""Autoencoders, and the latents that a diffusion network can work on instead of pixels (Rombach et al. 2022).

autoencoder = fd.latents.load("runs/vae")                     # trained by fastdiff train --objective vae
autoencoder = fd.latents.from_diffusers("stable-diffusion/vae")
z = autoencoder.encode(x, seed=0)                             # of variance 1 over the training data
x = autoencoder.decode(z)
fd.sample(model, plan, (64, *autoencoder.latent_shape), decode=autoencoder.decode)
"""

from fastdiff.latents.autoencoder import Autoencoder
from fastdiff.latents.load import from_diffusers, load
from fastdiff.models.posterior import Posterior, kl_to_standard_normal

__all__ = ["Autoencoder", "Posterior", "from_diffusers", "kl_to_standard_normal", "load"]
