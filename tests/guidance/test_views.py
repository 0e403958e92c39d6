"""Views: orthogonal, undone by their inverse, and one network that agrees with itself on all of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdiff as fd
from fastdiff.bench import classifier, quality
from fastdiff.guidance import Views, views

SIDE, PATCH = 6, 2
PLAN = fd.samplers.ddim(fd.schedules.linear(100), steps=4, eta=1.0)


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orders(n):
    return st.permutations(range(n))


VIEWS = st.one_of(
    st.just(views.identity),
    st.just(views.negation),
    st.sampled_from([-1, -2]).map(views.flip),
    st.integers(-4, 5).map(views.rotation),
    orders(SIDE * SIDE).map(views.permutation),
    orders(SIDE).map(lambda order: views.rows(order, SIDE)),
    orders(SIDE).map(views.columns),
    orders((SIDE // PATCH) ** 2).map(lambda order: views.patches(order, PATCH, SIDE)),
)


@settings(max_examples=100, deadline=None)
@given(VIEWS, st.integers(0, 100))
def test_every_view_is_orthogonal(view, seed):
    """Its inverse undoes it, and inner products stay what they are: noise that is seen is noise."""
    a, b = numbers(2, 3, SIDE, SIDE, seed=seed), numbers(2, 3, SIDE, SIDE, seed=seed + 1)
    assert torch.equal(view.back(view.see(a)), a)
    assert torch.equal(view.see(view.back(a)), a)
    # Sums of 108 products in another order.
    torch.testing.assert_close((view.see(a) * view.see(b)).sum(), (a * b).sum(), rtol=1e-12, atol=1e-12)


def test_what_a_view_shows():
    """Position k shows what is at order[k]; rotations turn against the clock."""
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert views.rows([3, 0, 1, 2], 4).see(image)[0, 0, :, 0].tolist() == [12, 0, 4, 8]
    assert views.columns([3, 0, 1, 2]).see(image)[0, 0, 0].tolist() == [3, 0, 1, 2]
    assert views.patches([3, 1, 2, 0], 2, 4).see(image)[0, 0].tolist() == [
        [10, 11, 2, 3],
        [14, 15, 6, 7],
        [8, 9, 0, 1],
        [12, 13, 4, 5],
    ]
    assert views.rotation(1).see(image)[0, 0, 0].tolist() == [3, 7, 11, 15]
    points = torch.tensor([[1.0, 2.0]])
    for order in ([1, 0], torch.tensor([1, 0]), torch.tensor([1.0, 0.0])):
        assert views.permutation(order, axes=1).see(points).tolist() == [[2.0, 1.0]]


def test_patches_of_a_wide_image():
    """Patches count in C order whatever the shape."""
    image = torch.arange(8.0).view(1, 1, 2, 4)
    assert views.patches([1, 0], 2, 4).see(image)[0, 0].tolist() == [[2, 3, 0, 1], [6, 7, 4, 5]]


def network(x, t, y):
    return torch.tanh(x * torch.linspace(0.5, 2, x[0].numel(), dtype=x.dtype).view(x.shape[1:]) + y.view(-1, 1, 1, 1))


def test_the_noise_is_the_mean_over_views():
    """`mean_v v^-1(model(v(x)))`, each view with its condition (Geng et al. 2024, eq. 4)."""
    several = [views.identity, views.rotation(1), views.negation, views.patches([3, 1, 0, 2], 3, SIDE)]
    x, t, y = numbers(2, 1, SIDE, SIDE), torch.tensor([1.0, 2.0]), numbers(2, 4, seed=1)
    expected = sum(view.back(network(view.see(x), t, y[:, k])) for k, view in enumerate(several)) / 4
    # A sum of four in another order.
    torch.testing.assert_close(Views(network, several)(x, t, y=y), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_what_is_drawn_looks_the_same_in_every_view(guidance):
    """With one condition for both, the picture of noise seen the other way is the picture seen the other way."""
    view = views.rotation(2)
    both = Views(network, [views.identity, view])
    shape = (3, 1, SIDE, SIDE)
    start, y = numbers(*shape), numbers(3, 1, seed=1).expand(3, 2).contiguous()
    noise = [numbers(*shape, seed=10 + row) for row in range(len(PLAN))]

    def drawn(look):
        return fd.sample(
            *(both, PLAN, shape),
            x_init=look(start),
            noise=lambda stream, row, shape: look(noise[row]),
            cond={"y": y},
            uncond={"y": torch.zeros_like(y)},
            guidance=guidance,
            dtype=torch.float64,
        )

    # Sums of two in the other order, through four rows.
    torch.testing.assert_close(drawn(view.see), view.see(drawn(lambda x: x)), rtol=1e-11, atol=1e-11)


def test_a_learned_variance_is_left_out():
    """Views are of the image; twice its channels come from a network that learned its variance."""

    def doubled(x, t, y):
        return torch.cat([network(x, t, y), torch.ones_like(x)], dim=1)

    x, t, y = numbers(2, 1, SIDE, SIDE), torch.tensor([1.0, 2.0]), numbers(2, 2)
    several = [views.identity, views.negation]
    assert torch.equal(Views(doubled, several)(x, t, y=y), Views(network, several)(x, t, y=y))


def test_an_illusion_of_digits():
    """A judge of real digits reads a 2 and, upside down, a 5: in 58 of 100 illusions and in no plain 2."""
    judge = classifier.train(*quality.split("train"), epochs=3)
    digits, view, count = fd.load("digits"), views.flip(-2), 24
    steps = digits.plan("ddim", steps=20, eta=1.0)
    labels = torch.tensor([2, 5]).expand(count, 2)

    def read_as_both(model, y):
        x = fd.sample(model, steps, (count, *digits.shape), cond={"y": y}, guidance=3.0)
        return int(((judge.predict(x) == 2) & (judge.predict(view.see(x)) == 5)).sum())

    # Of 24, 14 are expected; 7 are three standard deviations fewer.
    assert read_as_both(Views(digits.model, [views.identity, view]), labels) >= 7
    assert read_as_both(digits.model, labels[:, 0]) <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: views.permutation([0, 0]), "order must hold each of 0..n-1 once"),
        (lambda: views.rows([1, 2], 4), "order must hold each of 0..n-1 once"),
        (lambda: views.columns([]), "order must hold each of 0..n-1 once"),
        (lambda: views.patches([0, 1, 2, 3], 3, 8), "4 patches of side 3 do not fill an image of width 8"),
        (lambda: views.patches([0, 1, 2], 2, 4), "3 patches of side 2 do not fill"),
        (lambda: views.patches([0, 1], 0, 2), "side must be a whole number, at least 1"),
        (lambda: views.permutation([0, 1], axes=0), "axes must be a whole number, at least 1"),
        (lambda: views.columns([1, 0]).see(torch.zeros(1, 1, 2, 3)), "permutes 2 positions on 1 axes, got images"),
        (lambda: views.permutation([1, 0], axes=2).see(torch.zeros(1, 2)), "permutes 2 positions on 2 axes, got"),
        (lambda: views.flip(0), "count from its end"),
        (lambda: views.rotation(1).see(torch.zeros(1, 1, 2, 3)), r"needs square images, got \(1, 1, 2, 3\)"),
        (lambda: Views(network, []), "give at least one view"),
        (
            lambda: Views(network, [views.identity])(torch.zeros(2, 1, 2, 2), torch.zeros(2), y=torch.zeros(2)),
            r"condition 'y' must have shape \[B, 1, ...\]",
        ),
    ],
)
def test_bad_arguments(make, message):
    """Each costs one line."""
    with pytest.raises(fd.InputError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
