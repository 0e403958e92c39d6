"""noise_loss: the error of a prediction against noise that is drawn again, or against what else it is to be."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import fastdiff as fd
from fastdiff import prediction as predictions
from tests.backends import BACKENDS, each_backend

SCHEDULE = fd.schedules.linear(20)
WHOSE = {"seed": [3, 4, 5], "index": [7, 8, 2**40], "step": 11}


def pairs(*shape, dtype=torch.float32):
    """A prediction, and the noise that q_sample drew."""
    _, eps = fd.q_sample(torch.zeros(shape), 3, SCHEDULE, **WHOSE, return_noise=True)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype), eps


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (3, 2, 7, 9), (3, 3, 16, 16)])
def test_is_the_mean_squared_error(backend, dtype, shape):
    """The mean of (pred - eps)^2 against the noise that q_sample returned, per sample and over the batch."""
    pred, eps = pairs(*shape, dtype=dtype)
    expected = (pred.double() - eps.double()).square().flatten(1).mean(dim=1)
    each = fd.noise_loss(pred, **WHOSE, reduction="none", backend=backend)
    # Each square is off by two roundings of 6e-8, a sum of at most 768 of one sign by no more than a few.
    torch.testing.assert_close(each.double(), expected, rtol=1e-6, atol=0)
    loss = fd.noise_loss(pred, **WHOSE, backend=backend)
    assert loss.dtype == torch.float32 and loss.shape == ()
    torch.testing.assert_close(loss.double(), expected.mean(), rtol=1e-6, atol=0)


def target_terms(x0, t, schedule, prediction, **whose):
    """t0 x0 and te eps of the prediction's target, in float64."""
    _, eps = fd.q_sample(x0, t, schedule, **whose, return_noise=True)
    target = predictions.coefficients(prediction, schedule.alpha, schedule.sigma, schedule.step_sigma)
    t0, te = (torch.from_numpy(of[t]).reshape(-1, *[1] * (x0.ndim - 1)) for of in (target.t0, target.te))
    return t0 * x0.double(), te * eps.double()


# Each with a schedule that it is used with.
TARGETS = [
    ("eps", SCHEDULE),
    ("x0", SCHEDULE),
    ("v", fd.schedules.cosine(20)),
    ("score", fd.schedules.geometric(20)),
    ("flow", fd.schedules.flow(20)),
    ("edm", fd.schedules.karras(20)),
    ("consistency", fd.schedules.karras(20)),
    ("eps_step", SCHEDULE),
]
each_target = pytest.mark.parametrize(("prediction", "schedule"), TARGETS, ids=[name for name, _ in TARGETS])


def test_every_prediction_is_here():
    assert sorted(name for name, _ in TARGETS) == sorted(predictions.names())


@each_backend
@each_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_target(backend, prediction, schedule, dtype):
    """Loss and gradient against t0 x0 + te eps, by the formula and autograd in float64."""
    pred, x0 = (value.to(dtype) for value in torch.randn(2, 3, 2, 7, 9, generator=torch.Generator().manual_seed(1)))
    t = [0, 10, 19]
    of_x0, of_eps = target_terms(x0, t, schedule, prediction, **WHOSE)
    exact_pred = pred.double().requires_grad_()
    exact = (exact_pred - (of_x0 + of_eps)).square().flatten(1).mean(dim=1)
    (wanted,) = torch.autograd.grad(exact.sum(), exact_pred)

    pred.requires_grad_()
    call = {"x0": x0, "t": t, "schedule": schedule, "prediction": prediction, "reduction": "none", "backend": backend}
    loss = fd.noise_loss(pred, **WHOSE, **call)
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    # A difference is rounded in float32 with t0, te, t0 x0, the target and itself: half an ulp each of no more than
    # `size`. A sum of 126 squares in float32 takes 126 roundings at most.
    unit = torch.finfo(torch.float32).eps / 2
    size = pred.detach().double().abs() + of_x0.abs() + of_eps.abs()
    off = 5 * unit * size
    difference = (pred.detach().double() - (of_x0 + of_eps)).abs()
    of_squares = (2 * difference * off + off.square()).flatten(1).mean(dim=1)
    assert ((loss.double() - exact).abs() <= of_squares + 128 * unit * exact).all()
    # The factor 2 / n and its product with the difference round once each, the gradient's dtype once more.
    rounded, tiny = torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal
    bound = 2 / 126 * off + (2.1 * unit + 1.1 * rounded) * wanted.abs() + tiny * rounded
    assert ((gradient.double() - wanted).abs() <= bound).all()


@hypothesis.given(
    target=st.sampled_from(TARGETS),
    t=st.lists(st.integers(0, 19), min_size=3, max_size=3),
    seed=st.integers(0, 2**64 - 1),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_the_target_itself_costs_nothing(target, t, seed):
    """In float64 the loss of t0 x0 + te eps is 0, at any levels and of any noise, and that of 1 beside it is 1."""
    prediction, schedule = target
    x0 = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    exact = sum(target_terms(x0, t, schedule, prediction, seed=seed))
    for beside in (0, 1):
        loss = fd.noise_loss(exact + beside, seed, x0=x0, t=t, schedule=schedule, prediction=prediction)
        # target + 1 is rounded relative to the target, which a score makes large: 100 at the cleanest level.
        torch.testing.assert_close(loss, torch.tensor(float(beside)).double(), rtol=1e-12, atol=1e-24)


@each_backend
def test_noise_needs_no_x0(backend):
    """Of eps predictions x0, t and schedule are not looked at: the bits are those without them."""
    pred, _ = pairs(3, 2, 9)
    loss = fd.noise_loss(pred, **WHOSE, x0=torch.ones(3, 2, 9), t=3, schedule=SCHEDULE, backend=backend)
    assert torch.equal(loss, fd.noise_loss(pred, **WHOSE, backend=backend))


def test_gradients_of_backends_agree_to_the_bit():
    """0 differing bits between the backends, for every dtype."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x0 = torch.randn(3, 5, 7, dtype=dtype)
        gradients = []
        for backend in BACKENDS:
            pred = pairs(3, 5, 7, dtype=dtype)[0].requires_grad_()
            options = {"x0": x0, "t": [0, 9, 19], "schedule": SCHEDULE, "prediction": "v", "backend": backend}
            fd.noise_loss(pred, **WHOSE, **options).backward()
            gradients.append(pred.grad)
        assert all(torch.equal(gradients[0], other) for other in gradients[1:])


@each_backend
@pytest.mark.parametrize("weight", [0.25, torch.tensor([1.0, 0.0, 3.0]), torch.tensor(2.0)])
def test_weight(backend, weight):
    """A sample's error is multiplied by its weight, before the mean over the batch."""
    pred, _ = pairs(3, 8)
    each = fd.noise_loss(pred, **WHOSE, reduction="none", backend=backend)
    weighted = fd.noise_loss(pred, **WHOSE, weight=weight, reduction="none", backend=backend)
    assert torch.equal(weighted, weight * each)
    assert torch.equal(fd.noise_loss(pred, **WHOSE, weight=weight, backend=backend), weighted.mean())


def test_noise_that_was_predicted_costs_nothing():
    """With the defaults of q_sample, the noise that q_sample drew has loss 0; that of another stream has not."""
    _, eps = fd.q_sample(torch.zeros(3, 8), 0, SCHEDULE, return_noise=True)
    assert fd.noise_loss(eps) == 0
    assert fd.noise_loss(eps, stream="train") > 0.1


@each_backend
def test_a_sample_is_its_own(backend):
    """A sample's loss has the same bits alone and in a batch, with its level and data too."""
    pred, x0 = pairs(3, 2, 33)
    options = {"reduction": "none", "backend": backend}
    each = fd.noise_loss(pred, **WHOSE, **options)
    alone = fd.noise_loss(pred[1:2], 4, 11, index=[8], **options)
    assert torch.equal(each[1:2], alone)
    options |= {"schedule": SCHEDULE, "prediction": "v"}
    each = fd.noise_loss(pred, **WHOSE, **options, x0=x0, t=[2, 9, 17])
    alone = fd.noise_loss(pred[1:2], 4, 11, index=[8], **options, x0=x0[1:2], t=9)
    assert torch.equal(each[1:2], alone)


@each_backend
def test_any_strides(backend):
    """pred and x0 are read as they lie: channels last, or one image for all samples."""
    pred, x0 = pairs(3, 4, 5, 6)
    options = {"t": [2, 9, 17], "schedule": SCHEDULE, "prediction": "flow", "backend": backend}
    wanted = fd.noise_loss(pred, **WHOSE, x0=x0, **options)
    last = [value.contiguous(memory_format=torch.channels_last) for value in (pred, x0)]
    assert torch.equal(fd.noise_loss(last[0], **WHOSE, x0=last[1], **options), wanted)
    shared = x0[:1].expand_as(pred)
    wanted = fd.noise_loss(pred, **WHOSE, x0=shared.contiguous(), **options)
    assert torch.equal(fd.noise_loss(pred, **WHOSE, x0=shared, **options), wanted)


def test_float64_x0():
    """It makes the arithmetic float64, in which pred is exact; the gradient has the dtype of pred."""
    pred, x0 = pairs(3, 4)
    pred, x0 = pred.requires_grad_(), x0.double() / 3
    options = {"x0": x0, "t": 4, "schedule": SCHEDULE, "prediction": "v"}
    loss = fd.noise_loss(pred, **WHOSE, **options)
    assert torch.equal(loss, fd.noise_loss(pred.double(), **WHOSE, **options))
    assert torch.autograd.grad(loss, pred)[0].dtype == torch.float32


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(reduction, prediction):
    """Finite differences in float64 with respect to pred and weight."""
    pred, weight = pairs(3, 4)[0].double().requires_grad_(), torch.rand(3, dtype=torch.float64, requires_grad=True)
    options = {"x0": torch.ones(3, 4), "t": [0, 9, 19], "schedule": SCHEDULE, "prediction": prediction}
    assert torch.autograd.gradcheck(
        lambda pred, weight: fd.noise_loss(pred, **WHOSE, weight=weight, reduction=reduction, **options), (pred, weight)
    )


@each_backend
def test_gradient_is_that_of_autograd(backend):
    """The gradient of the weighted mean is 2 weight (pred - eps) / (B n)."""
    pred, eps = pairs(3, 6)
    weight = torch.tensor([1.0, 2.0, 0.5])
    pred.requires_grad_()
    fd.noise_loss(pred, **WHOSE, weight=weight, backend=backend).backward()
    # Four roundings of 6e-8.
    expected = 2 * weight[:, None].double() * (pred.double() - eps.double()) / pred.numel()
    torch.testing.assert_close(pred.grad.double(), expected, rtol=3e-7, atol=0)


V = {"x0": torch.zeros(3, 4), "t": 3, "schedule": SCHEDULE, "prediction": "v"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": torch.zeros(3, 4, dtype=torch.int64)}, "pred must be floats"),
        ({"weight": torch.ones(2)}, r"weight must be a number or have shape \(3,\)"),
        ({"reduction": "sum"}, "unknown reduction 'sum'"),
        ({"stream": "trian"}, "did you mean 'train'"),
        ({"seed": -1}, "seed must be between 0 and"),
        ({"index": [1]}, "index must be one number or one for each of 3 samples"),
        ({"step": 2**32}, "step must be between 0 and"),
        ({"backend": "egaer"}, "did you mean 'eager'"),
        ({"prediction": "vv"}, "unknown prediction 'vv': did you mean 'v'"),
        ({"prediction": "v"}, "the target of a v prediction needs x0, t and schedule"),
        ({**V, "t": None}, "needs x0, t and schedule"),
        ({**V, "t": 20}, r"t must be in 0\.\.19"),
        ({**V, "t": [1, 2]}, "t must be one whole number or one for each of 3 samples"),
        ({**V, "x0": torch.zeros(3, 5)}, r"x0 must be floats of the shape of pred, \(3, 4\)"),
        ({**V, "x0": torch.zeros(3, 4, dtype=torch.uint8)}, "x0 must be floats"),
        ({**V, "x0": torch.zeros(3, 4, requires_grad=True)}, "no gradient through the target: pass x0.detach()"),
        ({**V, "prediction": "score", "schedule": fd.schedules.flow(20)}, "where alpha is 0"),
        ({**V, "x0": torch.zeros(3, 4).double(), "backend": "cpu"}, "float32, not float64"),
    ],
)
def test_bad_input(change, message):
    """What does not match is refused with a line that names it."""
    with pytest.raises(fd.FastdiffError, match=message) as caught:
        fd.noise_loss(**{"pred": torch.zeros(3, 4), **change})
    assert "\n" not in str(caught.value)


def test_x0_without_gradient_mode():
    """Under no_grad, x0 may want a gradient elsewhere."""
    x0 = torch.ones(3, 4, requires_grad=True)
    with torch.no_grad():
        loss = fd.noise_loss(torch.zeros(3, 4), **{**V, "x0": x0})
    assert torch.equal(loss, fd.noise_loss(torch.zeros(3, 4), **{**V, "x0": x0.detach()}))
