"""q_sample: noising data."""

import pytest
import torch

import fastdiff as fd
from tests.backends import BACKENDS, each_backend

SCHEDULE = fd.schedules.cosine(50)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_is_alpha_x0_plus_sigma_eps(dtype):
    """x_t equals the formula in float64, to one rounding of the dtype of x0."""
    x0 = torch.randn(5, 3, 7, 2, dtype=dtype)
    t = torch.tensor([0, 49, 10, 10, 30])
    x_t, eps = fd.q_sample(x0, t, SCHEDULE, seed=4, return_noise=True)
    alpha, sigma = (torch.from_numpy(a.copy())[t].view(-1, 1, 1, 1) for a in (SCHEDULE.alpha, SCHEDULE.sigma))
    expected = alpha * x0.double() + sigma * eps.double()
    assert x_t.dtype == dtype
    # float64 rounds like the reference up to one last digit; narrower types round once from float32.
    unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps if dtype != torch.float64 else 0)
    torch.testing.assert_close(x_t.double(), expected, rtol=2 * unit, atol=2 * unit)


def test_noise_is_the_published_one():
    """The noise comes from stream q_sample by seed, index and step, or is what was given."""
    x0 = torch.zeros(2, 6)
    _, eps = fd.q_sample(x0, 3, SCHEDULE, seed=[1, 2], index=[8, 9], step=4, return_noise=True)
    assert torch.equal(eps, fd.noise.normal((2, 6), seed=[1, 2], index=[8, 9], step=4, stream="q_sample"))
    given = torch.randn(2, 6)
    _, eps = fd.q_sample(x0, 3, SCHEDULE, noise=given, return_noise=True)
    assert torch.equal(eps, given)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scaled_is_what_the_network_is_given(backend, dtype):
    """`scale_in x_t` in one pass, to one rounding of the dtype of x0, with the same noise."""
    if dtype == torch.float64 and backend != "eager":
        backend = "auto"
    schedule, t = fd.schedules.karras(50).with_unit_input(), [0, 20, 49]
    x0 = torch.randn(3, 5, 7, dtype=dtype, generator=torch.Generator().manual_seed(0))
    options = {"seed": 4, "return_noise": True, "backend": backend}
    scaled, eps = fd.q_sample(x0, t, schedule, scaled=True, **options)
    assert scaled.dtype == dtype and torch.equal(eps, fd.q_sample(x0, t, schedule, **options)[1])
    alpha, sigma, scale_in = (
        torch.from_numpy(of[t].copy()).view(-1, 1, 1) for of in (schedule.alpha, schedule.sigma, schedule.scale_in)
    )
    expected = scale_in * (alpha * x0.double() + sigma * eps.double())
    # In float32 the factors, a product and the sum round once each, relative to the terms; then dtype once.
    size = scale_in * (alpha * x0.double().abs() + sigma * eps.double().abs())
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    bound = 4 * unit * size + torch.finfo(dtype).eps / 2 * expected.abs() * 1.01
    assert ((scaled.double() - expected).abs() <= bound).all()


@each_backend
def test_gradient_of_scaled(backend):
    """d scale_in x_t / d x0 = scale_in alpha_t, rounded once."""
    schedule = fd.schedules.karras(50).with_unit_input()
    x0 = torch.randn(2, 3, requires_grad=True)
    fd.q_sample(x0, [0, 20], schedule, scaled=True, backend=backend).sum().backward()
    factor = (schedule.scale_in * schedule.alpha)[[0, 20]]
    assert torch.equal(x0.grad, torch.tensor(factor, dtype=torch.float32)[:, None].expand(2, 3))


def test_one_t_is_one_for_each():
    """A single t serves the whole batch."""
    x0 = torch.randn(3, 4)
    assert torch.equal(fd.q_sample(x0, 7, SCHEDULE), fd.q_sample(x0, [7, 7, 7], SCHEDULE))


@each_backend
def test_gradient_is_alpha(backend):
    """d x_t / d x0 = alpha_t and d x_t / d eps = sigma_t, exactly."""
    x0, noise = torch.randn(2, 2, 3).unbind()
    x0.requires_grad_(), noise.requires_grad_()
    fd.q_sample(x0, [0, 20], SCHEDULE, noise=noise, backend=backend).sum().backward()
    for gradient, factor in ((x0.grad, SCHEDULE.alpha), (noise.grad, SCHEDULE.sigma)):
        assert torch.equal(gradient, torch.tensor(factor[[0, 20]], dtype=torch.float32)[:, None].expand(2, 3))


def test_gradcheck():
    """Finite differences in float64, with noise that is drawn and that is given."""
    x0, noise = torch.randn(2, 2, 3, dtype=torch.float64).unbind()
    x0.requires_grad_(), noise.requires_grad_()
    assert torch.autograd.gradcheck(lambda x0: fd.q_sample(x0, [3, 20], SCHEDULE), (x0,))
    assert torch.autograd.gradcheck(lambda x0, noise: fd.q_sample(x0, [3, 20], SCHEDULE, noise=noise), (x0, noise))


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("given", [False, True])
def test_out_is_written(backend, dtype, given):
    """`out` gets the bits that a new tensor would, is returned itself, and the noise with it."""
    x0, noise = torch.randn(3, 5, 4, dtype=dtype), torch.randn(3, 5, 4) if given else None
    out = torch.full_like(x0, torch.nan)
    options = {"seed": 9, "noise": noise, "return_noise": True, "backend": backend}
    x_t, eps = fd.q_sample(x0, [1, 2, 3], SCHEDULE, out=out, **options)
    assert x_t is out
    for got, wanted in zip((out, eps), fd.q_sample(x0, [1, 2, 3], SCHEDULE, **options), strict=True):
        assert torch.equal(got, wanted)
    out.fill_(torch.nan)
    fd.q_sample(x0, [1, 2, 3], SCHEDULE, 9, noise=noise, out=out, backend=backend)
    assert torch.equal(out, x_t)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(2, 5), "out must have shape and dtype of x0"),
        (torch.zeros(2, 4).half(), "out must have shape and dtype of x0"),
        (torch.zeros(2, 4).requires_grad_(), "no gradient through `out`"),
    ],
)
def test_bad_out(out, message):
    """What x_t would not fit, or what would lose a gradient, is refused."""
    with pytest.raises(fd.InputError, match=message):
        fd.q_sample(torch.zeros(2, 4), 0, SCHEDULE, out=out)


def test_out_without_gradient_mode():
    """Under no_grad, `out` takes x_t of a tensor that wants a gradient elsewhere."""
    x0 = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(fd.InputError, match="no gradient through `out`"):
        fd.q_sample(x0, 0, SCHEDULE, out=torch.empty(2, 4))
    with torch.no_grad():
        assert torch.equal(fd.q_sample(x0, 0, SCHEDULE, out=torch.empty(2, 4)), fd.q_sample(x0, 0, SCHEDULE))


def test_backends_agree_to_the_bit():
    """0 differing bits between the backends, for every dtype."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x0 = torch.randn(3, 5, 7, dtype=dtype)
        first, *others = (fd.q_sample(x0, [0, 20, 49], SCHEDULE, seed=[1, 2, 3], backend=name) for name in BACKENDS)
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("t", [-1, 50, [0, 50], [0], [[0, 1]], torch.tensor([0.0, 1.0]), torch.tensor([True, False])])
def test_bad_t(t):
    """t outside the schedule, of another length or not whole is refused."""
    with pytest.raises(fd.InputError, match="t must be"):
        fd.q_sample(torch.zeros(2, 4), t, SCHEDULE)


def test_refuses_what_is_no_float():
    """Images of whole numbers are refused: x_t would be cut to whole numbers too."""
    with pytest.raises(fd.InputError, match="x0 must be floats"):
        fd.q_sample(torch.zeros(2, 4, dtype=torch.uint8), 0, SCHEDULE)


def test_bad_noise_shape():
    """Noise of another shape is refused rather than broadcast."""
    with pytest.raises(fd.InputError, match="noise must have the shape of x0"):
        fd.q_sample(torch.zeros(2, 4), 0, SCHEDULE, noise=torch.zeros(1, 4))


@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_noise_of_any_dtype(backend, dtype):
    """It is taken as the float32 that it is nearest to, and returned as it was given."""
    x0, noise = torch.randn(2, 7).bfloat16(), torch.randn(2, 7).to(dtype)
    x_t, eps = fd.q_sample(x0, 5, SCHEDULE, noise=noise, return_noise=True, backend=backend)
    assert eps is noise
    assert torch.equal(x_t, fd.q_sample(x0, 5, SCHEDULE, noise=noise.float(), backend=backend))
