"""Samples that begin with data: noised images as the start, and known regions that stay."""

import pytest
import torch

import fastdiff as fd
from tests.backends import BACKENDS, each_backend

SCHEDULE = fd.schedules.linear(100)
SHAPE = (4, 2, 3, 5)
DATA = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
MASK = (torch.arange(5) < 2).float()  # the left two columns


def model(x, t):
    return torch.tanh(x) * torch.cos(t.to(x.dtype) / 50).view(-1, 1, 1, 1)


def plan(**options):
    return fd.samplers.ddim(SCHEDULE, **{"steps": 6, "eta": 1.0, **options})


def multistep():
    """History, anchor and levels of its own."""
    columns = {"cx": 0.5, "cy": 0.1, "po": 0.3, "ch0": [0.0, 0.5, 0.2], "dx": 0.5, "dz": 0.1, "cz": [0.2, 0.1, 0.0]}
    levels = {"alpha": [0.5, 0.7, 0.9, 1.0], "sigma": [0.8, 0.6, 0.3, 0.0]}
    return fd.Plan.build("multistep", [3.0, 2.0, 1.0], {**columns, "slot": [0, 0, -1]}, **levels)


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_data_are_noised_to_the_first_row(start, prediction):
    """The network first sees `scale_in (alpha x0 + sigma z)` of the level that `start` leaves first."""
    seen = []

    def watching(x, t):
        seen.append(x.clone())
        return model(x, t)

    schedule = fd.schedules.karras(100, sigma_min=0.02, sigma_max=10.0).with_unit_input()
    steps = fd.samplers.ddim(schedule, steps=6, spacing="trailing", start=start, prediction=prediction)
    fd.sample(watching, steps, SHAPE, seed=7, x0_init=DATA)
    z = fd.noise.normal(SHAPE, seed=7)
    expected = steps.column("scale_in")[0] * (steps.alpha[0] * DATA + steps.sigma[0] * z)
    # Four roundings of float32.
    torch.testing.assert_close(seen[0], expected, rtol=1e-6, atol=1e-6)
    assert len(seen) == 6 - start


def test_a_start_from_data_is_a_start_from_their_noised_state():
    """x0_init saves the caller a q_sample: the two differ in the order of rounding alone."""
    steps = plan(start=2)
    z = fd.noise.normal(SHAPE, seed=3).double()
    state = steps.alpha[0] * DATA.double() + steps.sigma[0] * z
    ours = fd.sample(model, steps, SHAPE, seed=3, x0_init=DATA, dtype=torch.float64)
    torch.testing.assert_close(
        ours, fd.sample(model, steps, SHAPE, seed=3, x_init=state, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def test_images_broadcast():
    """One image for all samples, in another dtype."""
    one = DATA[:1].double()
    assert torch.equal(
        fd.sample(model, plan(start=3), SHAPE, x0_init=one),
        fd.sample(model, plan(start=3), SHAPE, x0_init=one.expand(SHAPE)),
    )


@each_backend
@pytest.mark.parametrize(
    "steps", [plan(steps=2), plan(steps=2, eta=0.0), multistep()], ids=["noise", "no noise", "multistep"]
)
def test_what_is_known_stays(backend, steps):
    """The result holds the data themselves where the mask is 1, and what is drawn elsewhere looks at them."""
    got = fd.sample(model, steps, SHAPE, known=DATA, mask=MASK, backend=backend)
    assert torch.equal(got[..., :2], DATA[..., :2])
    plain = fd.sample(model, steps, SHAPE, backend=backend)
    assert not torch.equal(got[..., :2], plain[..., :2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backends_agree_to_the_bit(dtype):
    """Start from data, keep some of them, blend others."""
    options = {"x0_init": DATA, "known": DATA.flip(0), "mask": torch.linspace(0, 1, 5), "dtype": dtype}
    first, *others = (fd.sample(model, plan(steps=3), SHAPE, backend=name, **options) for name in BACKENDS)
    assert all(torch.equal(first, other) for other in others)


def test_every_row_puts_the_data_at_its_level():
    """x' = alpha known + sigma z where the mask is 1, the plan's own x' where it is 0, and between a blend of both."""
    steps, mask = plan(), torch.tensor([1.0, 0.25, 0.0, 0.0, 1.0], dtype=torch.float64)
    x, states = fd.noise.normal(SHAPE, seed=5).double(), []
    row_of = {t: row for row, t in enumerate(steps.t.tolist())}

    def one_row(x, t):
        """One row of the plan without known data, by itself."""
        row = row_of[t]
        columns = {name: [steps.column(name)[row]] for name in steps.columns}
        single = fd.Plan.build("row", [t], columns)
        z = fd.noise.normal(SHAPE, seed=5, step=row, stream="step").double()
        return fd.sample(model, single, SHAPE, x_init=x, noise=lambda *_: z, dtype=torch.float64), z

    for row, t in enumerate(steps.t.tolist()):
        own, z = one_row(x, t)
        keep = steps.alpha[row + 1] * DATA.double() + steps.sigma[row + 1] * z
        x = own + mask * (keep - own)
        states.append(x)
    got = []
    fd.sample(
        *(model, steps, SHAPE),
        seed=5,
        known=DATA,
        mask=mask,
        dtype=torch.float64,
        callback=lambda row, x, x0: got.append(x.clone()),
    )
    # Six rows of float64 arithmetic.
    torch.testing.assert_close(torch.stack(got), torch.stack(states), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_known_data_may_keep_their_noise(backend):
    """Every row has the known at its level with the same noise, whatever noise the sampler itself adds."""
    eps, steps, states = fd.noise.normal(SHAPE, seed=8), plan(), []
    fd.sample(
        *(model, steps, SHAPE),
        known=DATA,
        mask=MASK,
        known_noise=eps,
        backend=backend,
        callback=lambda row, x, x0: states.append(x.clone()),
    )
    for row, state in enumerate(states, start=1):
        expected = steps.alpha[row] * DATA + steps.sigma[row] * eps
        # Two roundings of numbers below 8.
        torch.testing.assert_close(state * MASK, (expected * MASK).float(), rtol=0, atol=1e-6)


def test_a_mask_of_zero_changes_nothing():
    """The bits of the plan by itself."""
    plain = fd.sample(model, plan(), SHAPE, seed=2)
    assert torch.equal(fd.sample(model, plan(), SHAPE, seed=2, known=DATA, mask=torch.zeros(1)), plain)


def test_a_plan_that_ends_in_noise_keeps_what_is_known_at_its_level():
    """The result holds `alpha known + sigma z` of the level that the plan lands on."""
    steps, z = plan(final="sigma_min", spacing="trailing"), torch.full(SHAPE, 0.5)
    got = fd.sample(model, steps, SHAPE, known=DATA, mask=MASK, noise=lambda *_: z)
    expected = steps.alpha[-1] * DATA + steps.sigma[-1] * z
    # Two roundings of float32.
    torch.testing.assert_close(got[..., :2], expected[..., :2].float(), rtol=1e-6, atol=1e-6)


def test_with_guidance_and_a_start():
    """All at once: a guided start from data keeps the known ones."""

    def conditional(x, t, y):
        return model(x, t) * y.view(-1, 1, 1, 1)

    options = {
        "cond": {"y": torch.ones(4)},
        "uncond": {"y": torch.zeros(4)},
        "guidance": fd.guidance.APG(3.0, norm=1.0),
    }
    got = fd.sample(conditional, plan(start=2), SHAPE, x0_init=DATA, known=DATA, mask=MASK, **options)
    assert torch.equal(got[..., :2], DATA[..., :2])
    assert not torch.equal(got, DATA)


def test_data_come_back_from_their_noise():
    """Inversion encodes data in the noise that DDIM makes them of, the closer the more steps: of first order."""
    errors = []
    for steps in (25, 50, 100):
        there = fd.samplers.ddim_inversion(SCHEDULE, steps=steps, clip=None)
        back = fd.samplers.ddim(SCHEDULE, steps=steps, clip=None)
        code = fd.sample(smooth, there, SHAPE, x_init=DATA, dtype=torch.float64)
        returned = fd.sample(smooth, back, SHAPE, x_init=code, dtype=torch.float64)
        errors.append(float((returned - DATA).abs().max()))
    assert errors[0] < 0.1
    assert errors[2] < 0.6 * errors[1] < 0.6 * 0.6 * errors[0]


def smooth(x, t):
    """The noise that there is in data of N(0, 1/4)."""
    alpha, sigma = (torch.from_numpy(s.copy())[t.long()].view(-1, 1, 1, 1) for s in (SCHEDULE.alpha, SCHEDULE.sigma))
    return sigma * x / (alpha**2 / 4 + sigma**2)


def test_resampling_keeps_what_is_known():
    """RePaint's plan goes up and down; the data stay at the level of each row, and as they are at the end."""
    steps, states = fd.samplers.repaint(SCHEDULE, steps=6, jump_length=2, jump_samples=2), []
    z = torch.full(SHAPE, 0.5)
    got = fd.sample(
        *(model, steps, SHAPE),
        known=DATA,
        mask=MASK,
        noise=lambda *_: z,
        callback=lambda row, x, x0: states.append(x[..., :2].clone()),
    )
    assert (steps.sigma[1:] > steps.sigma[:-1]).any()
    for state, alpha, sigma in zip(states, steps.alpha[1:], steps.sigma[1:], strict=True):
        # Two roundings of float32.
        torch.testing.assert_close(state, (alpha * DATA + sigma * z)[..., :2], rtol=1e-6, atol=1e-6)
    assert torch.equal(got[..., :2], DATA[..., :2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x_init": DATA, "x0_init": DATA}, "give one of them"),
        ({"known": DATA}, "inpainting needs both known and mask"),
        ({"mask": MASK}, "inpainting needs both known and mask"),
        (
            {"x0_init": DATA[:3]},
            r"x0_init must broadcast to the shape of the samples, \(4, 2, 3, 5\), got \(3, 2, 3, 5\)",
        ),
        ({"known": DATA, "mask": torch.zeros(4)}, "mask must broadcast"),
        ({"known": DATA, "mask": torch.tensor(1.5)}, "mask must be in 0..1"),
        ({"x_init": [0.0]}, "x_init must be a tensor, got list"),
        ({"known": DATA, "mask": [1.0]}, "mask must be a tensor, got list"),
        ({"x0_init": torch.tensor(torch.nan)}, "x0_init holds NaN or infinity"),
        ({"known": torch.tensor(torch.inf), "mask": MASK}, "known holds NaN or infinity"),
        (
            {"x0_init": DATA, "plan": fd.Plan.build("mine", [0.0], {"cx": 0.5})},
            "mine does not know how noisy its rows are",
        ),
    ],
)
def test_bad_images(arguments, message):
    """Each costs one line."""
    with pytest.raises(fd.FastdiffError, match=message) as raised:
        fd.sample(**{"model": model, "plan": plan(), "shape": SHAPE, **arguments})
    assert "\n" not in str(raised.value)
