"""Rules of guidance, row by row, against the guiders of diffusers."""

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.classifier_free_zero_star_guidance import ClassifierFreeZeroStarGuidance

import fastdiff as fd
from fastdiff.guidance import APG, CFGZero

SHAPE = (3, 2, 4, 4)
ROWS = 6
STEPS = fd.samplers.ddim(fd.schedules.flow(100), steps=ROWS, spacing="trailing", prediction="flow", clip=None)
COND, UNCOND = torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), 9.0)
W = 4.0


def model(x, t, y):
    return torch.tanh(x + y.view(-1, 1, 1, 1) / 10) * torch.cos(t / 50).view(-1, 1, 1, 1)


def states(network, guidance):
    """Every state [rows, B, ...] of a float64 run."""
    found = []
    fd.sample(
        *(network, STEPS, SHAPE),
        cond={"y": COND},
        uncond={"y": UNCOND},
        guidance=guidance,
        dtype=torch.float64,
        callback=lambda row, x, x0: found.append(x.clone()),
    )
    return torch.stack(found)


def by_peer(combine):
    """The states where the peer combines the branches."""
    return states(lambda x, t, y: combine(model(x, t, COND), model(x, t, UNCOND)), 1.0)


def error(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("norm", [None, 2.0])
@pytest.mark.parametrize("momentum", [0.0, -0.5])
def test_apg(eta, norm, momentum):
    """In the paper's form, `c + (w - 1) ...`; by default the peer has `u + w ...`, which at eta < 1 is another rule."""

    def by_form(original):
        buffer = MomentumBuffer(momentum)
        options = {"eta": eta, "norm_threshold": norm or 0.0, "use_original_formulation": original}
        return by_peer(lambda c, u: normalized_guidance(c, u, W - original, buffer, **options))

    paper, default = by_form(True), by_form(False)
    ours = states(model, APG(W, eta=eta, norm=norm, momentum=momentum))
    assert error(ours, paper) < 1e-12  # float64
    same = eta == 1.0 and norm is None and momentum == 0.0
    assert (error(ours, default) < 1e-12) == same


@pytest.mark.parametrize("zero_rows", [0, 1, 3])
def test_cfg_zero(zero_rows):
    """The peer finds the scale of u in float32."""
    peer = ClassifierFreeZeroStarGuidance(W, zero_init_steps=zero_rows)
    rows = iter(range(ROWS))

    def combine(c, u):
        peer.set_state(step=next(rows), num_inference_steps=ROWS, timestep=torch.zeros(()))
        return peer.forward(c, u).pred

    assert error(states(model, CFGZero(W, zero_rows=zero_rows)), by_peer(combine)) < 1e-6
