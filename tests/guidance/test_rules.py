"""Rules of guidance: scales and where they hold, APG and CFG-Zero* against their papers' formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdiff as fd
from fastdiff.guidance import APG, CFG, CFGZero
from tests.backends import each_backend

SCHEDULE = fd.schedules.linear(100)
FLOW = fd.schedules.flow(100)
SHAPE = (4, 2, 3, 3)
ROWS = 6
COND, UNCOND = {"y": torch.tensor([1.0, 2.0, 3.0, 4.0])}, {"y": torch.full((4,), 9.0)}
# Six rows of float64 arithmetic.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}


def plan(**options):
    return fd.samplers.ddim(SCHEDULE, **{"steps": ROWS, "eta": 1.0, **options})


def model(x, t, y):
    """Depends on all its inputs, and on no other sample of the batch."""
    shift = y.to(x.dtype).view(-1, 1, 1, 1) / 10
    return torch.tanh(x + shift) * torch.cos(t.to(x.dtype) / 50).view(-1, 1, 1, 1)


def drawn(guidance, steps=None, network=model, **options):
    steps = plan() if steps is None else steps
    return fd.sample(network, steps, SHAPE, cond=COND, uncond=UNCOND, guidance=guidance, **options)


def combined(combine):
    """The network whose output is `combine(c, u)`, one call a row."""

    def network(x, t, y):
        return combine(model(x, t, COND["y"]), model(x, t, UNCOND["y"]))

    return network


def of_formula(combine, steps=None):
    return drawn(1.0, steps, combined(combine), dtype=torch.float64)


def levels(steps):
    return steps.sigma[:-1] / steps.alpha[:-1]


def dot(a, b):
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)


def test_the_scale_has_three_names():
    """w = 1 + omega = lambda: Ho & Salimans' omega, and the combination of both branches."""
    c, u = torch.tensor(3.0), torch.tensor(1.0)
    for w in (fd.guidance.scale(w=2.5), fd.guidance.scale(omega=1.5), fd.guidance.scale(lambda_=2.5)):
        assert u + w * (c - u) == (1 + 1.5) * c - 1.5 * u == 2.5 * c + (1 - 2.5) * u
    each = fd.guidance.scale(omega=torch.tensor([0.0, 1.0]))
    assert each.tolist() == [1.0, 2.0]
    for names in ({}, {"w": 1.0, "omega": 0.0}):
        with pytest.raises(fd.InputError, match="by one of its names"):
            fd.guidance.scale(**names)


@pytest.mark.parametrize(
    "w",
    [
        CFG(2.5),
        torch.tensor(2.5),
        torch.full((4,), 2.5),
        torch.full((ROWS, 1), 2.5),
        torch.full((ROWS, 4), 2.5),
        lambda level: 2.5,
    ],
    ids=["rule", "scalar", "per sample", "per row", "per row and sample", "function"],
)
def test_one_scale_in_many_forms(w):
    """The same bits, whatever holds the number."""
    assert torch.equal(drawn(w), drawn(2.5))


def test_a_scale_of_each_row_and_sample():
    """Row i and sample b are guided by w[i, b]; as a function of the level, or in a tensor."""
    w = torch.linspace(-1, 4, ROWS * 4, dtype=torch.float64).view(ROWS, 4)
    row = iter(range(ROWS))
    expected = of_formula(lambda c, u: u + w[next(row)].view(-1, 1, 1, 1) * (c - u))
    torch.testing.assert_close(drawn(w, dtype=torch.float64), expected, **CLOSE)
    of_level = torch.tensor([np.tanh(level) + 1 for level in levels(plan())])[:, None]
    assert torch.equal(drawn(lambda level: np.tanh(level) + 1), drawn(of_level))


@settings(max_examples=20, deadline=None)
@given(st.tuples(st.floats(0, 20), st.floats(0, 20)).filter(lambda pair: pair[0] < pair[1]))
def test_an_interval_spares_the_unconditional_branch(interval):
    """w = 1 outside (low, high], where the network sees the conditional batch alone (Kynkaanniemi et al. 2024)."""
    seen = []

    def counting(x, t, y):
        seen.append(len(x))
        return model(x, t, y)

    inside = [interval[0] < level <= interval[1] for level in levels(plan())]
    got = drawn(CFG(3.0, interval), network=counting)
    assert seen == [8 if within else 4 for within in inside]
    everywhere = torch.where(torch.tensor(inside), 3.0, 1.0)[:, None]
    assert torch.equal(got, drawn(everywhere))
    assert torch.equal(drawn(CFG(torch.tensor([0.5, 1.0, 2.0, 3.0]), interval))[3], got[3])


def same(x, t, y):
    """A network that returns its input: what the step overwrites with the next one."""
    return x


@each_backend
def test_a_network_may_return_its_input(backend):
    """Also where rows of one branch and of both take turns."""
    w = [2.0, 1.0, 1.0, 2.0]
    steps = plan(steps=4)
    rule = CFG(lambda level: w[int(np.abs(levels(steps) - level).argmin())])
    copied = drawn(rule, steps, lambda x, t, y: x.clone(), backend="eager")
    assert torch.equal(drawn(rule, steps, same, backend=backend), copied)


def test_rows_whose_scale_is_one_are_spared():
    """A number 1 from a function is known on the host; a tensor is not read."""
    seen = []

    def counting(x, t, y):
        seen.append(len(x))
        return model(x, t, y)

    middle = np.median(levels(plan()))
    drawn(lambda level: 2.0 if level > middle else 1.0, network=counting)
    drawn(torch.ones(4), network=counting)
    assert seen == [8, 8, 8, 4, 4, 4] + 6 * [8]


@pytest.mark.parametrize("interval", [None, (0.5, 5.0)])
@pytest.mark.parametrize("eta", [0.0, 0.3])
@pytest.mark.parametrize("norm", [None, 0.4])
@pytest.mark.parametrize("momentum", [0.0, -0.5])
@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_apg_is_the_algorithm_of_the_paper_on_the_output(prediction, interval, eta, norm, momentum):
    """Sadat et al. 2024, Algorithm 1, where the output is x0, and the same of another output.

    Rows outside the interval leave the running mean alone.
    """
    steps = plan(prediction=prediction)
    inside = iter([interval is None or interval[0] < level <= interval[1] for level in levels(steps)])
    mean = 0.0

    def algorithm(c, u):
        nonlocal mean
        if not next(inside):
            return c
        mean = c - u + momentum * mean
        d = mean if norm is None else mean * (norm / dot(mean, mean).sqrt()).clamp(max=1)
        parallel = dot(d, c) / dot(c, c) * c
        return c + (4.0 - 1) * (d - parallel + eta * parallel)

    got = drawn(APG(4.0, interval, eta=eta, norm=norm, momentum=momentum), steps, dtype=torch.float64)
    torch.testing.assert_close(got, of_formula(algorithm, steps), **CLOSE)


def test_apg_that_projects_nothing_is_guidance():
    """eta = 1 without bound and momentum is u + w (c - u), in other roundings."""
    torch.testing.assert_close(drawn(APG(4.0, eta=1.0), dtype=torch.float64), drawn(4.0, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("zero_rows", [0, 2])
@pytest.mark.parametrize("interval", [None, (0.5, 2.0)])
def test_cfg_zero_is_the_algorithm_of_the_paper(zero_rows, interval):
    """Fan et al. 2025, Algorithm 1: the optimised scale of u, and a velocity of 0 in the first rows."""
    steps = fd.samplers.ddim(FLOW, timesteps=[90, 70, 50, 30, 20, 10], prediction="flow", clip=None)
    row = iter(range(ROWS))
    inside = [interval is None or interval[0] < level <= interval[1] for level in levels(steps)]

    def algorithm(c, u):
        k = next(row)
        s = dot(c, u) / dot(u, u)
        guided = s * u + 4.0 * (c - s * u) if inside[k] else c
        return guided * (k >= zero_rows)

    got = drawn(CFGZero(4.0, interval, zero_rows=zero_rows), steps, dtype=torch.float64)
    torch.testing.assert_close(got, of_formula(algorithm, steps), **CLOSE)


@pytest.mark.parametrize("size", [1e-2, 1e-5])
def test_cfg_zero_of_a_small_branch(size):
    """The scale of u, 1 / size here, keeps its digits where u is small beside c: `c = u / size` gives c back."""
    steps = fd.samplers.ddim(FLOW, timesteps=[50], prediction="flow", clip=None)

    def network(x, t, y):
        c = torch.tanh(x)
        return torch.where(y.view(-1, 1, 1, 1) == 9, size * c, c)

    got = drawn(CFGZero(4.0, zero_rows=0), steps, network)
    # A few roundings of float32, in s and in products with it.
    torch.testing.assert_close(got, drawn(1.0, steps, network), rtol=1e-5, atol=1e-5)


def test_a_velocity_of_zero_leaves_a_flow_alone():
    """The first rows of CFG-Zero* keep the state: alpha + sigma = 1, to float32 rounding."""
    steps = fd.samplers.ddim(FLOW, timesteps=[90, 70, 50], prediction="flow", clip=None)
    states = []
    start = torch.randn(SHAPE)
    drawn(CFGZero(4.0, zero_rows=2), steps, x_init=start, callback=lambda row, x, x0: states.append(x.clone()))
    torch.testing.assert_close(states[1], start, rtol=1e-6, atol=1e-6)
    assert (states[2] - start).abs().max() > 0.1


@each_backend
@pytest.mark.parametrize("rule", [APG(4.0, norm=0.4), APG(4.0, norm=0.4, momentum=-0.5), CFGZero(4.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_backend(backend, rule, dtype):
    """Sums over a sample agree between backends to rounding, some 1e-7; two rows make a few times that of it."""
    options = {"dtype": dtype, "dynamic_threshold": 0.9}
    got, plain = (drawn(rule, plan(steps=2), backend=name, **options) for name in (backend, "eager"))
    # In bfloat16 another last digit of the network's input may be a step of 2^-8 in its output.
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(got, plain, rtol=bound, atol=bound)


@pytest.mark.parametrize("rule", [APG(4.0, norm=0.4), APG(4.0, momentum=0.5), CFGZero(4.0)], ids=str)
def test_a_network_of_zeros(rule):
    """No norm to divide by: the output stays 0."""
    assert torch.isfinite(drawn(rule, network=lambda x, t, y: torch.zeros_like(x))).all()


def test_a_negative_condition_is_the_other_branch():
    """`uncond` may be any condition: guidance leads away from it."""
    c, u = ({"y": torch.full((4,), value)} for value in (2.0, -8.0))
    got = fd.sample(model, plan(), SHAPE, cond=c, uncond=u, guidance=3.0, dtype=torch.float64)

    def away(x, t, y):
        return model(x, t, u["y"]) + 3.0 * (model(x, t, c["y"]) - model(x, t, u["y"]))

    torch.testing.assert_close(got, fd.sample(away, plan(), SHAPE, cond=c, dtype=torch.float64), **CLOSE)


def apart(c, u, guidance=3.0):
    """A run whose network takes what cond and uncond hold; one name each."""
    return fd.sample(lambda x, t, k: x, plan(), SHAPE, cond={"k": c}, uncond={"k": u}, guidance=guidance)


@pytest.mark.parametrize(
    ("c", "u"),
    [
        (2.0, 0.0),
        (["cat"] * 4, [""] * 4),
        (np.ones(4), np.zeros(4)),
        (torch.ones(4), None),
        (torch.ones(4), 1.0),
        (torch.ones(4), torch.ones(4, 1)),
        (torch.ones(4).long(), torch.ones(4)),
    ],
    ids=str,
)
def test_branches_that_cannot_be_one_batch(c, u):
    """What is no tensor is the same for both branches, or refused; without guidance it may be anything."""
    with pytest.raises(fd.InputError, match="condition 'k' of cond and uncond must be tensors .* or equal") as raised:
        apart(c, u)
    assert "\n" not in str(raised.value)
    apart(c, u, guidance=1.0)
    if not isinstance(c, torch.Tensor):
        apart(c, c)


UNKNOWN = fd.Plan.build("unknown", [1.0, 0.0], {"cx": 0.5, "ce": -0.1, "eo": 1.0})


def noisy():
    """A plan that begins in pure noise."""
    return fd.samplers.ddim(FLOW, timesteps=[99, 50], prediction="flow", clip=None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *(
            (lambda i=i: CFG(2.0, i), "interval must be")
            for i in ((3.0, 1.0), (1.0,), 3.0, (0.1, 1.0, 3.0), ("a", "b"))
        ),
        *((lambda w=w: drawn(w), "guidance must be") for w in (np.nan, np.inf, [1.0] * 4, np.ones(4), None, "3", True)),
        (lambda: CFG(CFG(2.0)), "guidance must be"),
        (
            lambda: drawn(lambda level: level / (1 + level), noisy()),
            "guidance at sigma / alpha = inf must be .* got nan",
        ),
        (lambda: CFGZero(2.0, zero_rows=-1), "zero_rows must be a whole number, at least 0"),
        (lambda: APG(2.0, eta=1.5), "eta must be"),
        (lambda: APG(2.0, norm=0.0), "norm must be > 0"),
        (lambda: APG(2.0, momentum=1.0), "momentum must be in"),
        (lambda: drawn(torch.ones(3, 4)), r"\[rows, B\] with B = 4 and rows = 6, got shape \(3, 4\)"),
        (lambda: drawn(CFG(2.0, (0.0, 1.0)), UNKNOWN), "does not know its noise levels"),
        (lambda: drawn(lambda level: 2.0, UNKNOWN), "does not know its noise levels"),
        (lambda: drawn(APG(2.0), guidance_rescale=0.5), "guidance_rescale corrects a plain w or CFG"),
        (lambda: drawn(CFG(2.0, (1e5, 1e6)), guidance_rescale=0.5), "a guidance other than 1 in some row"),
    ],
)
def test_bad_arguments(make, message):
    """Each costs one line."""
    with pytest.raises(fd.InputError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
