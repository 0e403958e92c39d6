"""The loop: guidance, seeds, dtypes, callbacks, checks."""

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.loop import Setup
from fastdiff.ops import schema
from fastdiff.plan import FAST_NORMALS
from tests.backends import BACKENDS, each_backend, needs_interpreter

SCHEDULE = fd.schedules.linear(100)
SHAPE = (4, 2, 3, 3)
CPU = torch.device("cpu")


def model(x, t, y=None):
    """A smooth stand-in that depends on all its inputs and on no other sample of the batch."""
    shift = 0.0 if y is None else y.to(x.dtype).view(-1, 1, 1, 1) / 10
    return torch.tanh(x + shift) * torch.cos(t.to(x.dtype) / 50).view(-1, 1, 1, 1)


def plan(**options):
    return fd.samplers.ddim(SCHEDULE, **{"steps": 6, "eta": 1.0, **options})


def labels(*values):
    return {"y": torch.tensor(values)}


def test_is_the_formula_of_the_paper():
    """The whole loop equals DDIM's equations 12 and 16 written with abar, in float64."""
    steps = plan(clip=None)
    x = fd.noise.normal(SHAPE, seed=3).double()
    abar = np.append(SCHEDULE.alpha[[80, 64, 48, 32, 16, 0]] ** 2, 1.0)
    for row, t in enumerate([80, 64, 48, 32, 16, 0]):
        now, prev = abar[row], abar[row + 1]
        eps = model(x, torch.full((4,), float(t)))
        s = np.sqrt((1 - prev) / (1 - now) * (1 - now / prev))
        x0 = (x - np.sqrt(1 - now) * eps) / np.sqrt(now)
        z = fd.noise.normal(SHAPE, seed=3, step=row, stream="step").double()
        x = np.sqrt(prev) * x0 + np.sqrt(max(1 - prev - s**2, 0)) * eps + s * z
    got = fd.sample(model, plan(timesteps=[80, 64, 48, 32, 16, 0], clip=None), SHAPE, seed=3, dtype=torch.float64)
    # Six rows of float64 arithmetic.
    torch.testing.assert_close(got, x, rtol=1e-11, atol=1e-11)
    assert steps.t.tolist() == [80, 64, 48, 32, 16, 0]
    assert got.dtype == torch.float64


def test_a_sample_is_its_own():
    """Sample 17 of seed 5 is the same bits alone, in a batch, and at another place in it."""
    whole = fd.sample(model, plan(), SHAPE, seed=5, index=[16, 17, 18, 19])
    alone = fd.sample(model, plan(), (1, *SHAPE[1:]), seed=5, index=[17])
    mixed = fd.sample(model, plan(), SHAPE, seed=[1, 2, 5, 3], index=[0, 17, 17, 2])
    assert torch.equal(whole[1], alone[0])
    assert torch.equal(mixed[2], alone[0])


def test_guidance_is_the_combination():
    """u + w (c - u) for one w and for one each; w = 1 is the conditional branch, 0 the unconditional one."""
    cond, uncond = labels(1, 2, 3, 4), labels(9, 9, 9, 9)
    w = torch.tensor([0.0, 1.0, 2.5, -1.0])

    def combined(x, t):
        u, c = model(x, t, **uncond), model(x, t, **cond)
        return torch.lerp(u, c, w.view(-1, 1, 1, 1))

    guided = fd.sample(model, plan(), SHAPE, cond=cond, uncond=uncond, guidance=w)
    torch.testing.assert_close(guided, fd.sample(combined, plan(), SHAPE), rtol=1e-6, atol=1e-6)
    assert torch.equal(guided[0], fd.sample(model, plan(), SHAPE, cond=uncond)[0])
    assert torch.equal(guided[1], fd.sample(model, plan(), SHAPE, cond=cond)[1])
    twice = fd.sample(model, plan(), SHAPE, cond=cond, uncond=uncond, guidance=2.5)
    assert torch.equal(twice[2], guided[2])


def test_guidance_rescale_scales_the_guided_output():
    """phi mixes the guided output with itself at the spread of the conditional one (Lin et al. 2024, eq. 15, 16)."""
    cond, uncond = labels(1, 2, 3, 4), labels(9, 9, 9, 9)

    def rescaled(x, t):
        c, u = model(x, t, **cond), model(x, t, **uncond)
        guided = u + 3.0 * (c - u)
        ratio = c.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
        return 0.7 * ratio * guided + 0.3 * guided

    guidance = {"cond": cond, "uncond": uncond, "guidance": 3.0, "dtype": torch.float64}
    got = fd.sample(model, plan(), SHAPE, **guidance, guidance_rescale=0.7)
    # Six rows of float64 arithmetic.
    torch.testing.assert_close(got, fd.sample(rescaled, plan(), SHAPE, dtype=torch.float64), rtol=1e-11, atol=1e-11)
    plain = fd.sample(model, plan(), SHAPE, **guidance)
    assert torch.equal(fd.sample(model, plan(), SHAPE, **guidance, guidance_rescale=0.0), plain)
    assert (got - plain).abs().max() > 1e-2


@each_backend
def test_guidance_rescale_leaves_a_constant_output(backend):
    """Where the guided output has no spread (a network that starts at zero), there is nothing to rescale."""
    guidance = {"cond": {}, "uncond": {}, "guidance": 3.0, "backend": backend}

    def network(x, t):
        return torch.zeros_like(x)

    rescaled = fd.sample(network, plan(), SHAPE, **guidance, guidance_rescale=0.7)
    assert torch.equal(rescaled, fd.sample(network, plan(), SHAPE, **guidance))


@each_backend
def test_dynamic_threshold_scales_back_what_exceeds_it(backend):
    """x0 is cut at its quantile and scaled to the clip; a sample below the clip stays (Saharia et al. 2022, 2.3)."""
    lands = fd.Plan.build("lands", [0.0], {"po": 1.0, "clip": 1.0, "c0": 1.0})
    outs = torch.randn(SHAPE) * torch.tensor([4.0, 1.0, 0.1, 2.0]).view(4, 1, 1, 1)
    got = fd.sample(lambda x, t: outs, lands, SHAPE, dynamic_threshold=0.8, backend=backend)
    s = outs.double().abs().flatten(1).quantile(0.8, dim=1).clamp(min=1.0).view(4, 1, 1, 1)
    assert s[0] > 1 and s[2] == 1
    # The quantile's interpolation and the division round a few times, by 6e-8.
    torch.testing.assert_close(got.double(), outs.double().clamp(-s, s) / s, rtol=5e-7, atol=0)
    clipped = fd.sample(lambda x, t: outs, lands, SHAPE, backend=backend)
    assert torch.equal(clipped, outs.clamp(-1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backends_agree_to_the_bit(dtype):
    """The same pictures from every backend: guided, noisy, clipped; and from a network that learned its variance."""

    def with_variance(x, t):
        return torch.cat([model(x, t), torch.sin(3 * x)], dim=1)

    guided = {"cond": labels(1, 2, 3, 4), "uncond": labels(0, 0, 0, 0), "guidance": torch.tensor([0.0, 1.0, 2.5, 7.0])}
    learned = fd.samplers.ddpm(SCHEDULE, steps=5, variance="learned_range")
    for network, steps, options in ((model, plan(), guided), (with_variance, learned, {})):
        first, *others = (
            fd.sample(network, steps, SHAPE, seed=8, dtype=dtype, backend=name, **options) for name in BACKENDS
        )
        assert all(torch.equal(first, other) for other in others)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_has_the_bits_of_eager(dtype):
    """A whole loop of interpreted kernels: guided, with history and anchor, and noisy."""
    columns = {"cx": 0.5, "cy": 0.1, "po": 0.3, "ch0": [0.0, 0.5], "dx": 0.5, "cz": 0.2, "dz": 0.1, "slot": [0, -1]}
    steps = fd.Plan.build("both", [1.0, 0.0], columns)
    guided = {"cond": labels(1, 2, 3, 4), "uncond": labels(0, 0, 0, 0), "guidance": torch.tensor(2.5)}
    kernels, plain = (
        fd.sample(model, steps, SHAPE, seed=8, dtype=dtype, backend=name, **guided) for name in ("triton", "eager")
    )
    assert torch.equal(kernels, plain)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_guided_network_may_return_its_input(backend, dtype):
    """Its output, both branches of it, is then what the step overwrites with the next input."""

    def same(x, t, y):
        return x

    guided = {"cond": labels(1, 2, 3, 4), "uncond": labels(0, 0, 0, 0), "guidance": torch.tensor([0.0, 1.0, 2.5, 7.0])}
    copied = fd.sample(lambda x, t, y: x.clone(), plan(), SHAPE, dtype=dtype, backend="eager", **guided)
    assert torch.equal(fd.sample(same, plan(), SHAPE, dtype=dtype, backend=backend, **guided), copied)


def test_guidance_one_skips_the_unconditional_branch():
    """At w = 1 the network sees the batch once; otherwise once with both branches."""
    seen = []

    def counting(x, t, y):
        seen.append(len(x))
        return model(x, t, y)

    cond, uncond = labels(1, 2, 3, 4), labels(0, 0, 0, 0)
    fd.sample(counting, plan(steps=2), SHAPE, cond=cond, uncond=uncond)
    fd.sample(counting, plan(steps=2), SHAPE, cond=cond, uncond=uncond, guidance=2.0)
    assert seen == [4, 4, 8, 8]


def test_network_with_null_token_needs_no_uncond():
    """A model that has `unconditional` supplies the other branch."""
    network = fd.models.MLP(fd.models.MLPConfig(width=8, layers=1, classes=3))
    torch.nn.init.normal_(network.output[-1].weight, generator=torch.Generator().manual_seed(0))
    cond = labels(0, 1, 2, 0)
    asked = fd.sample(network, plan(), (4, 2), cond=cond, guidance=3.0)
    told = fd.sample(network, plan(), (4, 2), cond=cond, uncond=labels(3, 3, 3, 3), guidance=3.0)
    assert torch.equal(asked, told)


def test_learned_variance_scales_the_noise():
    """v = -1 and v = 1 give the small and the large variance, to float32 rounding of exp."""
    for v, variance in ((-1.0, "small"), (1.0, "large")):

        def with_variance(x, t, v=v):
            return torch.cat([model(x, t), torch.full_like(x, v)], dim=1)

        learned = fd.sample(with_variance, fd.samplers.ddpm(SCHEDULE, steps=5, variance="learned_range"), SHAPE)
        fixed = fd.sample(model, fd.samplers.ddpm(SCHEDULE, steps=5, variance=variance), SHAPE)
        torch.testing.assert_close(learned, fixed, rtol=1e-5, atol=1e-5)


def test_network_that_learned_its_variance_runs_other_plans():
    """The variance channels are dropped where the plan does not use them."""

    def with_variance(x, t):
        return torch.cat([model(x, t), torch.full_like(x, torch.pi)], dim=1)

    assert torch.equal(fd.sample(with_variance, plan(), SHAPE), fd.sample(model, plan(), SHAPE))


def test_history_and_anchor_reach_the_step():
    """A plan with history and anchor: x' = h_0 (the x0 before) and y = x at the start."""
    columns = {"po": 1.0, "ch0": [0.0, 1.0], "cy": [1.0, 1.0], "slot": [0, -1]}
    steps = fd.Plan.build("history", [1.0, 0.0], columns)
    start = torch.randn(SHAPE)
    outs = []

    def recording(x, t):
        outs.append(model(x, t))
        return outs[-1]

    got = fd.sample(recording, steps, SHAPE, x_init=start)
    torch.testing.assert_close(got, outs[0] + start, rtol=0, atol=1e-6)


def test_model_reads_the_scaled_input_in_its_dtype():
    """The network sees scale_in x of its own row, in the dtype asked for, and its time as float32."""
    seen = []

    def watching(x, t):
        seen.append((x.dtype, t.dtype, t[0].item(), x.double().std().item()))
        return torch.zeros_like(x)

    schedule = fd.schedules.karras(10, sigma_min=0.1, sigma_max=10.0).with_unit_input()
    steps = fd.samplers.ddim(schedule, steps=3, spacing="trailing", clip=None)
    x = fd.sample(watching, steps, (1, 1, 64, 64), dtype=torch.bfloat16)
    assert x.dtype == torch.float32
    assert [entry[:3] for entry in seen] == [(torch.bfloat16, torch.float32, t) for t in (9.0, 6.0, 2.0)]
    # With eps = 0 the state stays sigma_max z; 4,096 draws have a relative spread of 1.1 %.
    expected = 10.0 * steps.column("scale_in")
    np.testing.assert_allclose([entry[3] for entry in seen], expected, rtol=0.05)


def test_start_state_and_noise_can_be_given():
    """x_init replaces the first noise and is left alone; `noise` replaces both streams and is told row and shape."""
    start = torch.randn(SHAPE)
    kept = start.clone()
    calls = []

    def ones(stream, draw, shape):
        calls.append((stream, draw, shape))
        return torch.ones(shape)

    fd.sample(model, plan(), SHAPE, x_init=start, noise=ones)
    assert torch.equal(start, kept)
    assert calls == [("step", row, SHAPE) for row in range(6)]
    calls.clear()
    fd.sample(model, plan(steps=2, eta=0.0), SHAPE, noise=ones)
    assert calls == [("init", 0, SHAPE)]


@pytest.mark.parametrize("stream", ["init", "step"])
def test_noise_of_another_shape_is_refused(stream):
    """Noise that would broadcast is refused, or samples would share it."""

    def noise(name, draw, shape):
        return torch.zeros(shape if name != stream else shape[1:])

    with pytest.raises(fd.InputError, match=rf"noise\('{stream}', 0, ...\) must return shape"):
        fd.sample(model, plan(), SHAPE, noise=noise)


def test_callback_sees_every_row():
    """callback(row, x, x0): the last x0 is the result, since the last row lands on it."""
    seen = []
    result = fd.sample(model, plan(), SHAPE, callback=lambda row, x, x0: seen.append((row, x.clone(), x0.clone())))
    assert [row for row, _, _ in seen] == list(range(6))
    assert torch.equal(seen[-1][1], result)
    torch.testing.assert_close(seen[-1][2], result, rtol=0, atol=0)


def test_leaves_no_gradient():
    """Sampling tracks no gradient, whatever the parameters want."""
    network = fd.models.MLP(fd.models.MLPConfig(width=8, layers=1))
    assert not fd.sample(network, plan(), (2, 2)).requires_grad


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_names_the_row_of_a_bad_output(bad):
    """A model output that is not finite is named by row, time and sample, even where clipping would hide it."""

    def breaking(x, t):
        out = model(x, t)
        out[2] = torch.where(t[2] < 50, bad, out[2])
        return out

    with pytest.raises(fd.NonFiniteError, match=r"the model output at row 2 of 6 \(t = 48\), sample 2 of the batch"):
        fd.sample(breaking, plan(), SHAPE)
    assert fd.sample(breaking, plan(), SHAPE, check_finite=False).shape == SHAPE


def test_names_the_row_of_a_bad_state():
    """A state that overflows is named by the row after which it did."""
    steps = fd.Plan.build("grows", [2.0, 1.0, 0.0], {"cx": [1.0, 3e38, 3e38]})
    with pytest.raises(fd.NonFiniteError, match="the state after row 1 of 3"):
        fd.sample(lambda x, t: torch.zeros_like(x), steps, (1, 2), x_init=torch.full((1, 2), 2.0))


def test_refuses_a_bad_start():
    """NaN in x_init is named before the network is called."""
    with pytest.raises(fd.NonFiniteError, match="x_init"):
        fd.sample(model, plan(), SHAPE, x_init=torch.full(SHAPE, torch.nan))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x_init": torch.zeros(4, 2, 3, 4)}, "x_init must have the shape"),
        ({"seed": [1, 2]}, "seed must be one number or one for each of 4 samples"),
        ({"cond": labels(1, 2), "guidance": 1.0}, "condition 'y' must have the batch of 4 first"),
        ({"cond": labels(1, 2, 3, 4), "guidance": 2.0}, "guidance needs `uncond`"),
        ({"cond": labels(1, 2, 3, 4), "uncond": {}, "guidance": 2.0}, "must have the same names"),
        ({"guidance": torch.ones(3)}, "guidance must be a number or a tensor"),
        ({"guidance_rescale": 0.7}, "give a guidance other than 1"),
        ({"guidance_rescale": 1.5}, "guidance_rescale must be in 0..1"),
        ({"dynamic_threshold": 99.5}, "dynamic_threshold must be a quantile in 0..1"),
        ({"dynamic_threshold": 0.9, "plan": plan(clip=None)}, "scales x0 back to the plan's clip"),
        ({"model": lambda x, t: x.double()}, "the model returned torch.float64"),
        ({"model": lambda x, t: x.long()}, "the model returned torch.int64"),
        ({"backend": "cuad"}, "did you mean 'cuda'"),
        ({"normals": "quick"}, "unknown normals 'quick'"),
        ({"model": lambda x, t: x.to("meta")}, "the model returned a tensor on meta, and the state is on cpu"),
    ],
)
def test_bad_input(arguments, message):
    """What does not match is refused with a line that names it."""
    with pytest.raises(fd.InputError, match=message):
        fd.sample(**{"model": model, "plan": plan(), "shape": SHAPE, **arguments})


@pytest.mark.parametrize("backend", sorted({*BACKENDS} - {*schema.GPU_BACKENDS}))
def test_fast_normals_are_of_gpu_backends(backend):
    """Others say who has them."""
    with pytest.raises(fd.BackendError, match=f"backend '{backend}' has no fast normals, triton and cuda have"):
        fd.sample(model, plan(), SHAPE, backend=backend, normals="fast")


@pytest.mark.parametrize(("eta", "bit"), [(0.0, 0), (1.0, FAST_NORMALS)])
def test_fast_normals_are_a_bit_of_the_layout(eta, bit):
    """Behind the columns and what the history keeps; a plan without noise has one layout."""
    steps = plan(eta=eta)
    exact, fast = (Setup(steps, SHAPE, CPU, torch.float32, "triton", normals=kind) for kind in ("exact", "fast"))
    assert exact.layout == steps.layout
    assert fast.layout == steps.layout | bit
    assert steps.layout < FAST_NORMALS


def test_a_device_that_is_not_there():
    """One line that names it."""
    with pytest.raises(fd.BackendError, match="device cuda:99 cannot be used: "):
        fd.sample(model, plan(), SHAPE, device="cuda:99")


@each_backend
@pytest.mark.parametrize("view", [lambda x: x.mT, lambda x: x[:, :1].expand_as(x), lambda x: x.flip(0), lambda x: x])
def test_a_network_may_return_its_input(backend, view):
    """Seen in another way or as it is: the step does not overwrite what it still has to read."""
    got = fd.sample(lambda x, t: view(x), plan(), SHAPE, backend=backend)
    assert torch.equal(got, fd.sample(lambda x, t: view(x).clone(), plan(), SHAPE, backend="eager"))


@each_backend
def test_a_pending_negation_of_noise_or_guidance(backend):
    """What torch has only noted to negate is negated, on every backend."""

    def minus(z):
        return torch.complex(z, z).conj().imag

    z, w = torch.randn(SHAPE), torch.tensor([0.0, 1.0, 2.0, 3.0])
    options = {"uncond": {"y": torch.zeros(4)}, "cond": {"y": torch.ones(4)}, "backend": backend}

    def network(x, t, y):
        return x * y.view(-1, 1, 1, 1)

    lazily = fd.sample(network, plan(eta=1.0), SHAPE, noise=lambda *_: minus(z), guidance=minus(w), **options)
    plainly = fd.sample(network, plan(eta=1.0), SHAPE, noise=lambda *_: -z, guidance=-w, **options)
    assert torch.equal(lazily, plainly)


@each_backend
def test_no_samples(backend):
    """A batch of none is sampled without complaint, corrections and all."""
    options = {"guidance": 2.0, "uncond": {}, "guidance_rescale": 0.5, "dynamic_threshold": 0.9, "backend": backend}
    assert fd.sample(model, plan(), (0, 2, 3, 3), **options).shape == (0, 2, 3, 3)


@pytest.mark.parametrize("shape", [(), (4,), (4, -1)])
def test_refuses_a_shape_that_is_none(shape):
    """A shape without a batch and a sample is refused."""
    with pytest.raises(fd.InputError, match="shape must be"):
        fd.sample(model, plan(), shape)


def test_refuses_a_model_of_another_shape():
    """A model that returns another shape is named with both."""
    with pytest.raises(fd.InputError, match=r"returned shape \(4, 3, 3, 3\), this plan needs \(4, 2, 3, 3\)"):
        fd.sample(lambda x, t: torch.zeros(4, 3, 3, 3), plan(), SHAPE)
    with pytest.raises(fd.InputError, match=r"this plan needs \(4, 4, 3, 3\)"):
        fd.sample(model, fd.samplers.ddpm(SCHEDULE, steps=2, variance="learned_range"), SHAPE)
