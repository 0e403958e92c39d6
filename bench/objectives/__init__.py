"""Training objectives, score networks, latents and guidance at equal budget, on the digits."""
