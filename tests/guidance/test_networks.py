"""Models made of models: classifier guidance where the truth is known, and a worse network as the other branch."""

import numpy as np
import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff import prediction as predictions
from fastdiff.guidance import Autoguidance, ClassifierGuidance, Views, views

SHAPE = (4, 2, 3, 3)
SCHEDULES = {
    "vp": fd.schedules.linear(100),
    "ve": fd.schedules.karras(100, sigma_min=0.01, sigma_max=20.0).with_unit_input(),
    "flow": fd.schedules.flow(100),
}
SPREAD = 0.5  # of what a measurement adds to the data


class Truth:
    """Data of N(0, 1), and a measurement m = data + SPREAD n of them: all posteriors are known."""

    def __init__(self, schedule, prediction):
        self.schedule, self.prediction = schedule, prediction

    def level(self, x, t):
        """The level of each sample [B, 1, 1, 1], also between two of the schedule, and the state."""
        alpha, sigma, scale_in = (
            torch.from_numpy(value).view(-1, 1, 1, 1) for value in self.schedule.at_time(t.detach().numpy())
        )
        return alpha, sigma, x / scale_in

    def unconditional(self, x, t):
        """E[x0 | x_t] and its variance."""
        alpha, sigma, state = self.level(x, t)
        total = alpha**2 + sigma**2
        return alpha * state / total, sigma**2 / total

    def output(self, x, t, x0):
        """What a network of this prediction says where it takes the data for x0."""
        alpha, sigma, state = self.level(x, t)
        found = predictions.coefficients(self.prediction, alpha.numpy(), sigma.numpy())
        return torch.from_numpy(found.t0) * x0 + torch.from_numpy(found.te) * (state - alpha * x0) / sigma

    def network(self, x, t, m):
        return self.output(x, t, self.unconditional(x, t)[0])

    def log_probability(self, x, t, m):
        """log p(m | x_t), up to a constant."""
        mean, variance = self.unconditional(x, t)
        return (-((m - mean) ** 2) / (2 * (variance + SPREAD**2))).sum(dim=(1, 2, 3))

    def posterior(self, x, t, m):
        """The network of E[x0 | x_t, m]."""
        mean, variance = self.unconditional(x, t)
        return self.output(x, t, mean + variance / (variance + SPREAD**2) * (m - mean))


def pictures(seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "flow", "edm"])
def test_a_classifier_makes_the_posterior(name, prediction):
    """With the gradient of the true log p(m | x_t), the guided network is that of E[x0 | x_t, m]."""
    truth = Truth(SCHEDULES[name], prediction)
    guided = ClassifierGuidance(truth.network, truth.log_probability, truth.schedule, prediction)
    x, m, t = pictures(), pictures(1), torch.tensor([1.0, 20.0, 40.0, 90.0], dtype=torch.float64)
    t = torch.from_numpy(truth.schedule.time.copy())[t.long()]
    expected = truth.posterior(x, t, m)
    # Digits that alpha = 0.01 or sigma = 0.01 costs.
    torch.testing.assert_close(guided(x, t, m=m), expected, rtol=1e-9, atol=1e-9)
    between = t + 0.3
    # Interpolation between levels whose log SNR differ by 0.1 to 1: an eighth of its square, of the shift.
    shift = (truth.posterior(x, between, m) - truth.network(x, between, m)).abs().amax()
    assert (guided(x, between, m=m) - truth.posterior(x, between, m)).abs().amax() < 0.1 * shift


@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_a_classifier_close_to_pure_noise(prediction):
    """The factor grows as the gradient vanishes: the shift is that of the posterior up to the last level."""
    truth = Truth(SCHEDULES["flow"], prediction)
    guided = ClassifierGuidance(truth.network, truth.log_probability, truth.schedule, prediction)
    x, m, t = pictures(), pictures(1), torch.tensor([97.5, 98.5, 98.9, 98.999], dtype=torch.float64)
    # Between the last levels alpha is interpolated exactly, and alpha^2 + sigma^2 (of "v") to 1e-4.
    torch.testing.assert_close(guided(x, t, m=m), truth.posterior(x, t, m), rtol=1e-3, atol=1e-3)


def test_pure_noise_is_not_guided():
    """Where alpha is 0 there is nothing to divide the vanishing gradient by."""
    truth = Truth(fd.schedules.flow(100), "flow")
    guided = ClassifierGuidance(truth.network, truth.log_probability, truth.schedule, "flow", omega=2.0)
    x, m, t = pictures(), pictures(1), torch.full((4,), 99.0, dtype=torch.float64)
    assert torch.equal(guided(x, t, m=m), truth.network(x, t, m))


class Small(nn.Module):
    """A network with weights."""

    def __init__(self, weight, channels=2):
        super().__init__()
        self.weight, self.channels = nn.Parameter(torch.tensor(weight)), channels
        self.seen = []

    def forward(self, x, t, y):
        self.seen.append(len(x))
        out = torch.tanh(self.weight.to(x.dtype) * x + y.to(x.dtype).view(-1, 1, 1, 1) / 10)
        return torch.cat([out, torch.cos(x)], dim=1) if self.channels > x.shape[1] else out

    def unconditional(self, cond):
        return {"y": torch.zeros_like(cond["y"])}


def log_probability(x, t, y):
    return -(t * y * x.float().square().sum(dim=(1, 2, 3)))


PLAN = fd.samplers.ddim(SCHEDULES["vp"], steps=4, eta=1.0)
COND = {"y": torch.tensor([1.0, 2.0, 3.0, 4.0])}
VIEW = [views.identity]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_classifier_in_the_loop(dtype):
    """Inside no_grad and inference mode, with the other kind of guidance, and it leaves no gradient behind."""
    network = Small(0.7)
    guided = ClassifierGuidance(network, log_probability, SCHEDULES["vp"], omega=0.001)
    for guidance in (1.0, 3.0):
        got = fd.sample(guided, PLAN, SHAPE, cond=COND, guidance=guidance, dtype=dtype)
        with torch.inference_mode():
            again = fd.sample(guided, PLAN, SHAPE, cond=COND, guidance=guidance, dtype=dtype)
        assert torch.equal(got, again) and not got.requires_grad
        plain = fd.sample(network, PLAN, SHAPE, cond=COND, guidance=guidance, dtype=dtype)
        assert (got - plain).abs().max() > 0.01
    assert network.weight.grad is None


def test_a_classifier_leaves_the_learned_variance():
    """The gradient moves the channels of the image alone."""
    network = Small(0.7, channels=4)
    guided = ClassifierGuidance(network, log_probability, SCHEDULES["vp"])
    x, t = torch.randn(SHAPE), torch.full((4,), 30.0)
    got, plain = guided(x, t, **COND), network(x, t, **COND)
    assert got.shape == plain.shape == (4, 4, 3, 3)
    assert torch.equal(got[:, 2:], plain[:, 2:])
    assert not torch.equal(got[:, :2], plain[:, :2])


@pytest.mark.parametrize("negative", [None, {"y": torch.full((4,), 7.0)}])
def test_a_worse_network_is_the_other_branch(negative):
    """u + w (c - u) with u of the worse network, given the same condition or another (Karras et al. 2024, eq. 4)."""
    network, worse = Small(0.7), Small(0.2)
    other = COND if negative is None else negative

    def combined(x, t, y):
        c, u = network(x, t, y), worse(x, t, other["y"])
        return u + 2.5 * (c - u)

    options = {"cond": COND, "dtype": torch.float64}
    got = fd.sample(Autoguidance(network, worse), PLAN, SHAPE, uncond=negative, guidance=2.5, **options)
    # Four rows of float64 arithmetic.
    torch.testing.assert_close(got, fd.sample(combined, PLAN, SHAPE, **options), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "wrap",
    [lambda model: ClassifierGuidance(model, log_probability, SCHEDULES["vp"]), lambda model: Views(model, VIEW)],
)
def test_a_wrapper_refuses_what_has_branches_of_its_own(wrap):
    """Inside one the worse network would never be asked."""
    with pytest.raises(fd.InputError, match="put Autoguidance around (ClassifierGuidance|Views), not into it"):
        wrap(Autoguidance(Small(0.7), Small(0.2)))
    assert isinstance(Autoguidance(wrap(Small(0.7)), wrap(Small(0.2))), nn.Module)


def test_each_network_is_asked_for_its_own_branch():
    """A batch each, and outside an interval the good one alone."""
    network, worse = Small(0.7), Small(0.2)
    levels = PLAN.sigma[:-1] / PLAN.alpha[:-1]
    rule = fd.guidance.CFG(2.0, (0.0, float(np.median(levels))))
    fd.sample(Autoguidance(network, worse), PLAN, SHAPE, cond=COND, guidance=rule)
    assert network.seen == [4, 4, 4, 4]
    assert worse.seen == [4, 4]


def test_a_wrapper_asks_its_network_for_the_null_condition():
    """A network without one leaves it to `uncond`."""
    got = fd.sample(Views(Small(0.7), VIEW), PLAN, SHAPE, cond={"y": COND["y"][:, None]}, guidance=2.0)
    expected = fd.sample(Small(0.7), PLAN, SHAPE, cond=COND, guidance=2.0)
    assert torch.equal(got, expected)
    with pytest.raises(fd.InputError, match="guidance needs `uncond`"):
        fd.sample(Views(log_probability, VIEW), PLAN, SHAPE, cond=COND, guidance=2.0)
