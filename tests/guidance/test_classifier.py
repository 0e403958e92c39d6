"""Classifiers as what guides: probabilities, gradients, guided networks, and networks that one does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastdiff as fd
from fastdiff import checkpoint as checkpoints
from fastdiff import models
from fastdiff import prediction as predictions
from fastdiff.guidance import Classifier, ClassifierGuidance, load_classifier

CLASSES = ("a", "b", "c")
NULL = len(CLASSES)
SCHEDULE = fd.schedules.cosine(20)
EXPLODING = fd.schedules.karras(20).with_unit_input()
SHAPES = {"unet": (1, 6, 6), "mlp": (2,)}


def network(kind: str, classes: int) -> models.Model:
    """A small network in float64 whose every parameter was moved, so that nothing is 0 because it started there."""
    sizes: dict[str, Any] = {"width": 8, "classes": classes}
    sizes |= {"channels": 1, "blocks": 1} if kind.startswith("unet") else {"layers": 2}
    model = models.build({"kind": kind, **sizes}).eval().double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def classifier(kind: str = "mlp", schedule: fd.Schedule = SCHEDULE) -> Classifier:
    return Classifier(network(f"{kind}_classifier", len(CLASSES)), schedule, SHAPES[kind], CLASSES, "toy")


def diffusion(
    kind: str = "mlp",
    schedule: fd.Schedule = SCHEDULE,
    prediction: str = "eps",
    classes: tuple[str, ...] = CLASSES,
) -> fd.Checkpoint:
    return fd.Checkpoint(network(kind, len(classes)), schedule, prediction, SHAPES[kind], classes, None, "toy")


def states(kind: str = "mlp", batch: int = 4) -> tuple[Tensor, Tensor]:
    """Inputs of a network and their times."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, *SHAPES[kind], generator=generator, dtype=torch.float64)
    return x, torch.linspace(1, 18, batch).round().double()


def finite_difference(log_probability: Any, x: Tensor, t: Tensor, y: Tensor, h: float = 1e-5) -> Tensor:
    """The gradient of each sample's log-probability by central differences."""
    gradient = torch.zeros_like(x)
    for place in np.ndindex(*x.shape[1:]):
        step = torch.zeros_like(x)
        step[(slice(None), *place)] = h
        with torch.no_grad():
            gradient[(slice(None), *place)] = (log_probability(x + step, t, y) - log_probability(x - step, t, y)) / (
                2 * h
            )
    return gradient


# --- probabilities


@pytest.mark.parametrize("kind", SHAPES)
def test_probabilities_sum_to_one(kind: str) -> None:
    """Over the classes; and the null token, which stands for any class, is certain."""
    found, (x, t) = classifier(kind), states(kind)
    with torch.no_grad():
        each = torch.stack([found.log_probability(x, t, torch.full((4,), label)) for label in range(NULL)])
        anything = found.log_probability(x, t, torch.full((4,), NULL))
    torch.testing.assert_close(each.exp().sum(dim=0), torch.ones(4, dtype=torch.float64))
    assert each.exp().std() > 1e-3
    assert torch.equal(anything, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("kind", SHAPES)
def test_gradient_is_that_of_finite_differences(kind: str) -> None:
    """What autograd gives of log p(y | x_t); for the null token it is 0."""
    found, (x, t), y = classifier(kind), states(kind), torch.tensor([0, 1, 2, NULL])
    given_x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(found.log_probability(given_x, t, y).sum(), given_x)
    # Central differences of step 1e-5 are off by its square times a third derivative, and by 1e-16 / 1e-5.
    torch.testing.assert_close(gradient, finite_difference(found.log_probability, x, t, y), rtol=1e-6, atol=1e-8)
    assert gradient[:3].abs().amax() > 1e-3
    assert not gradient[3].any()


def test_accuracy_counts_the_most_probable_class_at_each_level() -> None:
    """A classifier of the sign of the first coordinate, asked of points that noise may push across."""

    class Sign(models.MLPClassifier):
        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return torch.stack([-x[:, 0], x[:, 0]], dim=1)

    sign = Classifier(Sign(models.MLPConfig(width=8, classes=2)), SCHEDULE, (2,), ("left", "right"), "toy")
    x0, y = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(5000, 1), torch.tensor([1, 0]).repeat(5000)
    levels = [0, 10, 19]
    right = torch.special.ndtr(torch.from_numpy(SCHEDULE.alpha / SCHEDULE.sigma))[levels]
    # Five standard errors of a share of 10,000.
    assert sign.accuracy(x0, y, levels) == pytest.approx(right.tolist(), abs=5 * (0.25 / 10_000) ** 0.5)
    assert sign.accuracy(x0, 1 - y, levels[:1]) == [0.0]
    with pytest.raises(fd.InputError, match="level must be a whole number in 0..19, got 20"):
        sign.accuracy(x0, y, [20])


def test_accuracy_is_of_what_guides() -> None:
    """The most probable class of the scaled x_t at its level's time, here of levels of up to 80."""
    schedule, level = EXPLODING.with_time(np.log(EXPLODING.sigma)), 8
    found = classifier(schedule=schedule)
    x0 = torch.randn(1000, 2, generator=torch.Generator().manual_seed(3))
    x = fd.q_sample(x0, level, schedule, 4, step=level, scaled=True)
    t = torch.full((1000,), schedule.time[level])
    with torch.no_grad():
        found.model.output[-1].bias -= found.model(x.double(), t).mean(dim=0)  # no class is always the most probable
        each = torch.stack([found.log_probability(x, t, torch.full((1000,), label)) for label in range(NULL)])
    most_probable = each.argmax(dim=0)
    assert len(most_probable.unique()) == NULL
    assert found.accuracy(x0, most_probable, [level], seed=4) == [1.0]


# --- the guided network


@settings(deadline=None, max_examples=20)
@given(omega=st.floats(-5, 5), level=st.integers(0, 19), y=st.integers(0, 1), x=st.tuples(*[st.floats(-3, 3)] * 2))
def test_bayes_of_a_gaussian_mixture(omega: float, level: int, y: int, x: tuple[float, float]) -> None:
    """eps(x_t) - omega sigma grad log p(y | x_t), all in closed form; with omega = 1 it is eps(x_t | y)."""
    mixture = fd.models.GaussianMixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.6], [1, 3])
    alpha, sigma = SCHEDULE.alpha[level], SCHEDULE.sigma[level]
    log_prior = mixture.weights.log()

    def log_probability(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """By Bayes' rule."""
        return mixture.log_density(x, alpha, sigma, y) + log_prior[y] - mixture.log_density(x, alpha, sigma)

    class Unconditional(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return mixture.eps(x, alpha, sigma)

    at, label = torch.tensor([x], dtype=torch.float64), torch.tensor([y])
    time = torch.tensor([float(level)], dtype=torch.float64)
    got = ClassifierGuidance(Unconditional(), log_probability, SCHEDULE, "eps", omega)(at, time, y=label)
    conditional, unconditional = (mixture.score(at, alpha, sigma, given) for given in (label, None))
    expected = mixture.eps(at, alpha, sigma) - omega * sigma * (conditional - unconditional)
    # float64 where densities of components differ by up to exp(3^2 / 0.3^2).
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    once = ClassifierGuidance(Unconditional(), log_probability, SCHEDULE, "eps")(at, time, y=label)
    torch.testing.assert_close(once, mixture.eps(at, alpha, sigma, label), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [SCHEDULE, EXPLODING], ids=["cosine", "karras"])
@pytest.mark.parametrize("kind", SHAPES)
def test_guided_eps_is_the_formula(kind: str, schedule: fd.Schedule) -> None:
    """eps - omega sigma grad log p(y | x_t), with the gradient in x_t and not in the scaled input of the networks."""
    found, checkpoint = classifier(kind, schedule), diffusion(kind, schedule)
    x, t = states(kind)
    level = t.long()
    t, y = torch.from_numpy(schedule.time.copy())[level], torch.tensor([0, 1, 2, NULL])
    sigma, scale_in = (
        torch.from_numpy(values.copy())[level].view(-1, *[1] * (x.ndim - 1))
        for values in (schedule.sigma, schedule.scale_in)
    )
    gradient = scale_in * finite_difference(found.log_probability, x, t, y)
    with torch.no_grad():
        expected = checkpoint.model(x, t, y) - 3.0 * sigma * gradient
        got = found.guide(checkpoint, 3.0)(x, t, y=y)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # of the differences, times sigma up to 80
    assert (got - checkpoint.model(x, t, y))[:3].abs().amax() > 1e-3


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_guidance_moves_eps_in_any_prediction(prediction: str) -> None:
    """What the guided output says of eps is what the network's own says, less omega sigma times the gradient."""
    found, checkpoint = classifier(), diffusion(prediction=prediction)
    (x, t), y = states(), torch.tensor([0, 1, 2, 1])
    alpha, sigma = (torch.from_numpy(values.copy())[t.long()][:, None] for values in (SCHEDULE.alpha, SCHEDULE.sigma))
    says = predictions.coefficients(prediction, alpha.numpy(), sigma.numpy())
    ex, eo = torch.from_numpy(says.ex), torch.from_numpy(says.eo)
    with torch.no_grad():
        plain, guided = checkpoint.model(x, t, y), found.guide(checkpoint, 2.0)(x, t, y=y)
    expected = ex * x + eo * plain - 2.0 * sigma * finite_difference(found.log_probability, x, t, y)
    torch.testing.assert_close(ex * x + eo * guided, expected, rtol=1e-6, atol=1e-6)  # of the differences


@pytest.mark.parametrize("classes", [CLASSES, ()], ids=["with classes", "without"])
def test_a_network_that_is_not_told_the_class(classes: tuple[str, ...]) -> None:
    """Labels are for the classifier; one that knows none needs no word about it."""
    found, checkpoint = classifier(), diffusion(classes=classes)
    (x, t), y = states(), torch.tensor([0, 1, 2, 1])
    told = {"unconditional": True} if classes else {}
    with torch.no_grad():
        got, nothing = found.guide(checkpoint, 2.0, **told)(x, t, y=y), found.guide(checkpoint, 0.0, **told)(x, t, y=y)
        plain = checkpoint.model(x, t)
    assert torch.equal(nothing, plain)
    sigma = torch.from_numpy(SCHEDULE.sigma.copy())[t.long()][:, None]
    moved = plain - 2.0 * sigma * finite_difference(found.log_probability, x, t, y)
    torch.testing.assert_close(got, moved, rtol=1e-6, atol=1e-6)  # of the differences


@pytest.mark.parametrize("unconditional", [False, True])
def test_scale_of_both_kinds_of_guidance(unconditional: bool) -> None:
    """u + w (c + omega shift - u): the null token asks nothing of the classifier, so that w scales omega."""
    found, checkpoint = classifier(), diffusion()
    plan = checkpoint.plan("ddim", steps=3, clip=None)
    cond, w, omega = {"y": torch.tensor([0, 1, 2])}, 2.0, 1.5
    null = torch.full((3,), NULL)

    def by_hand(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        c, u = (checkpoint.model(x, t, label) for label in (null if unconditional else y, null))
        sigma = torch.from_numpy(SCHEDULE.sigma.copy())[t.long()][:, None]
        return u + w * (c - omega * sigma * finite_difference(found.log_probability, x, t, y) - u)

    guided = found.guide(checkpoint, omega, unconditional=unconditional)
    options = {"cond": cond, "dtype": torch.float64}
    got = fd.sample(guided, plan, (3, 2), guidance=w, **options)
    # Three steps of what the differences are off by.
    torch.testing.assert_close(got, fd.sample(by_hand, plan, (3, 2), **options), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_classifier_keeps_its_dtype(dtype: torch.dtype) -> None:
    """The network may compute in another one: the gradient comes back in that."""
    found = replace(classifier(), model=classifier().model.float())
    checkpoint = replace(diffusion(), model=diffusion().model.to(dtype))
    got = fd.sample(found.guide(checkpoint), checkpoint.plan(steps=3), (3, 2), cond={"y": torch.arange(3)}, dtype=dtype)
    assert got.isfinite().all()


# --- what does not fit


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        (diffusion(schedule=fd.schedules.cosine(21)), "different noise levels"),
        (diffusion(schedule=fd.schedules.linear(20)), "different noise levels"),
        (diffusion(schedule=SCHEDULE.with_unit_input(0.5)), "different noise levels"),
        (diffusion("unet"), r"shape \(2,\), the network of \(1, 6, 6\)"),
        (diffusion(classes=("a", "b")), "classifier's 3 classes are not the 2 of"),
        (diffusion(classes=("c", "b", "a")), "classifier's 3 classes are not the 3 of"),
    ],
    ids=["levels", "schedule", "input scale", "shape", "number of classes", "order of classes"],
)
def test_a_network_that_does_not_fit_is_refused(checkpoint: fd.Checkpoint, said: str) -> None:
    """In one line, before anything is drawn."""
    with pytest.raises(fd.InputError, match=said) as raised:
        classifier().guide(checkpoint)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("omega", [float("nan"), float("inf"), "2"])
def test_omega_must_be_a_number(omega: Any) -> None:
    """Of any sign: a negative one leads away from the class."""
    classifier().guide(diffusion(), -1.0)
    with pytest.raises(fd.InputError, match="omega must be finite"):
        classifier().guide(diffusion(), omega)


def test_shape_and_classes_must_be_the_networks() -> None:
    """As for the checkpoints of diffusion networks."""
    with pytest.raises(fd.InputError, match="do not fit the network"):
        replace(classifier(), shape=(3,))
    with pytest.raises(fd.InputError, match="there are 2 classes and the network knows 3"):
        replace(classifier(), classes=("a", "b"))


# --- checkpoints


@pytest.mark.parametrize("schedule", [SCHEDULE, EXPLODING], ids=["cosine", "karras"])
@pytest.mark.parametrize("kind", SHAPES)
def test_what_was_saved_is_loaded(kind: str, schedule: fd.Schedule, tmp_path: Path) -> None:
    """Probabilities are equal to the last bit, and so is what guiding needs."""
    before = classifier(kind, schedule)
    before.model.float()
    checkpoints.save(tmp_path / "saved", before)
    after = load_classifier(tmp_path / "saved")
    (x, t), y = states(kind), torch.tensor([0, 1, 2, NULL])
    assert torch.equal(before.log_probability(x, t, y), after.log_probability(x, t, y))
    assert (after.shape, after.classes, after.data) == (before.shape, CLASSES, "toy")
    assert not after.model.training
    after.guide(diffusion(kind, schedule))


def test_one_is_not_read_as_the_other(tmp_path: Path) -> None:
    """A classifier is no diffusion network, and no other way round: the error says what the folder holds."""
    checkpoints.save(tmp_path / "classifier", classifier())
    checkpoints.save(tmp_path / "diffusion", diffusion())
    with pytest.raises(fd.CheckpointError, match="holds a network for classifier: one for diffusion is needed"):
        fd.load(tmp_path / "classifier")
    with pytest.raises(fd.CheckpointError, match="holds a network for diffusion: one for classifier is needed"):
        load_classifier(tmp_path / "diffusion")
    with pytest.raises(fd.CheckpointError, match="no checkpoint"):
        load_classifier(tmp_path / "nowhere")


def test_network_of_latents_is_not_guided() -> None:
    """A latent may have the shape of the data of a classifier, and is none of them."""
    autoencoder = models.build({"kind": "conv_autoencoder", "channels": 1, "width": 8, "latent_channels": 1}).eval()
    latents = fd.latents.Autoencoder(autoencoder, (1, 12, 12), "toy")
    checkpoint = replace(diffusion("unet"), latents=latents)
    assert checkpoint.shape == SHAPES["unet"]
    with pytest.raises(fd.InputError, match="cannot guide a network of latents"):
        classifier("unet").guide(checkpoint)


@pytest.mark.parametrize("unconditional", [False, True])
@pytest.mark.parametrize(("cond", "said"), [({}, "give labels y"), ({"y": torch.tensor([7] * 3)}, "y must be in 0..3")])
def test_guidance_needs_labels_of_the_classifier(unconditional: bool, cond: dict[str, Tensor], said: str) -> None:
    """None at all, or of a class that there is not: one line."""
    checkpoint = diffusion(classes=())
    guided = classifier().guide(checkpoint, unconditional=unconditional)
    with pytest.raises(fd.InputError, match=said):
        fd.sample(guided, checkpoint.plan("ddim", steps=2), (3, 2), cond=cond, dtype=torch.float64)


@pytest.mark.parametrize("column", ["alpha", "sigma", "time", "scale_in"])
def test_schedules_that_differ_in_one_column_do_not_agree(column: str) -> None:
    """Whatever a network is trained on counts."""
    other = replace(SCHEDULE, config={}, **{column: getattr(SCHEDULE, column) * (1 + 1e-9)})
    with pytest.raises(fd.InputError, match="different noise levels"):
        classifier().guide(diffusion(schedule=other))
