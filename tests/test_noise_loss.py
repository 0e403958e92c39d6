"""noise_loss: the error of predicted noise against noise that is drawn again."""

import pytest
import torch

import fastdiff as fd
from tests.backends import each_backend

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
    """A sample's loss has the same bits alone and in a batch."""
    pred, _ = pairs(3, 2, 33)
    each = fd.noise_loss(pred, **WHOSE, reduction="none", backend=backend)
    alone = fd.noise_loss(pred[1:2], 4, 11, index=[8], reduction="none", backend=backend)
    assert torch.equal(each[1:2], alone)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(reduction):
    """Finite differences in float64 with respect to pred and weight."""
    pred, weight = pairs(3, 4)[0].double().requires_grad_(), torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda pred, weight: fd.noise_loss(pred, **WHOSE, weight=weight, reduction=reduction), (pred, weight)
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
    ],
)
def test_bad_input(change, message):
    """What does not match is refused with a line that names it."""
    with pytest.raises(fd.InputError, match=message):
        fd.noise_loss(**{"pred": torch.zeros(3, 4), **change})
