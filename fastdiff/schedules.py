"""Noise schedules in float64: the pair (alpha, sigma) of `x_t = alpha_t x0 + sigma_t eps`, eps ~ N(0, I).

Index 0 is the cleanest level, index T - 1 the noisiest. Nothing here knows a tensor or a device.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec

import numpy as np
import numpy.typing as npt

from fastdiff.errors import InputError, lookup, number, whole

Array = npt.NDArray[np.float64]
P = ParamSpec("P")

# A beta of 1 would end the chain in one step; Nichol & Dhariwal 2021, section 3.2, cap it here.
MAX_COSINE_BETA = 0.999


def frozen(values: npt.ArrayLike) -> Array:
    """Return a float64 copy that cannot be written to."""
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Schedule:
    """A table of noise levels.

    Attributes:
        alpha: signal scale of each level, float64 [T], in [0, inf).
        sigma: noise scale of each level, float64 [T], positive. alpha / sigma falls strictly with the index.
        time: what the network is given at each level, float64 [T]; the index unless `with_time` says otherwise.
        scale_in: factor of the state that the network is given, float64 [T]; 1 unless `with_unit_input` is called.
        config: name and arguments that `from_config` rebuilds the schedule from; empty for one made by hand.

    Raises:
        InputError: the arrays differ in length, are empty, not finite, out of range or not ordered.
    """

    alpha: Array
    sigma: Array
    time: Array = None  # type: ignore[assignment]
    scale_in: Array = None  # type: ignore[assignment]
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        levels = np.size(self.alpha)
        defaults = {"time": np.arange(levels), "scale_in": np.ones(levels)}
        for name in ("alpha", "sigma", "time", "scale_in"):
            given = getattr(self, name)
            object.__setattr__(self, name, frozen(defaults[name] if given is None else given))
        _check_levels(self)

    def __len__(self) -> int:
        return int(self.alpha.size)

    @property
    def snr(self) -> Array:
        """Signal-to-noise ratio `alpha^2 / sigma^2`, float64 [T]."""
        return (self.alpha / self.sigma) ** 2

    @property
    def lambda_(self) -> Array:
        """Half the log SNR, `log(alpha / sigma)`, float64 [T]; -inf where alpha is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha / self.sigma)

    @functools.cached_property
    def step_sigma(self) -> Array:
        """`sqrt(sigma_t^2 - (alpha_t / alpha_{t-1})^2 sigma_{t-1}^2)`, of q(x_t | x_{t-1}), float64 [T]."""
        alpha, sigma = np.append(1.0, self.alpha[:-1]), np.append(0.0, self.sigma[:-1])
        return frozen(np.sqrt(self.sigma**2 - (self.alpha / alpha * sigma) ** 2))

    @property
    def variance_preserving(self) -> bool:
        """Whether alpha^2 + sigma^2 = 1 at every level."""
        return bool(np.allclose(self.alpha**2 + self.sigma**2, 1.0, rtol=0.0, atol=1e-9))

    def with_time(self, time: npt.ArrayLike) -> Schedule:
        """Return the same levels with other network times, [T]; e.g. `s.with_time(s.sigma)` for a network of sigma."""
        return replace(self, time=np.asarray(time), config={})

    def with_unit_input(self, sigma_data: float = 1.0) -> Schedule:
        """Return the same levels with `scale_in = 1 / sqrt(sigma_data^2 alpha^2 + sigma^2)`: unit variance.

        This is c_in of Karras et al. 2022, Table 1, for data of standard deviation sigma_data > 0 (theirs is 0.5).
        """
        sigma_data = number("sigma_data", sigma_data, 0, above=True)
        config = {**self.config, "unit_input": sigma_data} if self.config else {}
        return replace(self, scale_in=1 / np.hypot(sigma_data * self.alpha, self.sigma), config=config)

    @property
    def variance_exploding(self) -> bool:
        """Whether alpha is 1 at every level."""
        return bool((self.alpha == 1.0).all())

    def at_lambda(self, lambda_: npt.ArrayLike) -> tuple[Array, Array, Array, Array]:
        """Return (time, alpha, sigma, scale_in) where `log(alpha / sigma)` is lambda_, any shape, also between levels.

        Time is linear from level to level in lambda (in sigma for a flow), and beyond the schedule that of its last
        level. So is scale_in, but that of `with_unit_input` is exact for VP and VE. A schedule that is VP, VE or flow
        stays so.
        """
        value = np.asarray(lambda_, dtype=np.float64)
        place, places = (_sigmoid(-s) if self._system == "flow" else -s for s in (value, self.lambda_))
        time = np.interp(place, places, self.time)
        alpha, sigma = from_lambda(value, self._system or "vp")
        if not self._system:
            norm = np.exp(np.interp(place, places, np.log(np.hypot(self.alpha, self.sigma))))
            alpha, sigma = norm * alpha, norm * sigma
        if self._system in ("vp", "ve"):
            # scale_in^-2 = sigma_data^2 alpha^2 + sigma^2, that of unit input, is linear in sigma^2 in both.
            place, places = sigma**2, self.sigma**2
        return time, alpha, sigma, np.interp(place, places, self.scale_in**-2.0) ** -0.5

    def at_time(self, time: npt.ArrayLike) -> tuple[Array, Array, Array]:
        """Return (alpha, sigma, scale_in) where the network is given `time`, any shape: the inverse of `at_lambda`.

        Raises InputError if the times of the levels do not rise with the index, or time is beyond them.
        """
        value, times = np.asarray(time, dtype=np.float64), self.time
        if (np.diff(times) <= 0).any():
            raise InputError("a level can be found by its time only where times rise with the index")
        if value.size and not (times[0] <= value.min() and value.max() <= times[-1]):
            raise InputError(f"time must be within {times[0]:g}..{times[-1]:g}, the times of the schedule")
        if self._system == "flow":
            sigma = np.interp(value, times, self.sigma)
            with np.errstate(divide="ignore"):
                lambda_ = np.log1p(-sigma) - np.log(sigma)
        else:
            lambda_ = np.interp(value, times, self.lambda_)
        _, alpha, sigma, scale_in = self.at_lambda(lambda_)
        return alpha, sigma, scale_in

    @functools.cached_property
    def _system(self) -> str | None:
        flow = np.allclose(self.alpha + self.sigma, 1.0, rtol=0.0, atol=1e-9)
        systems = {"vp": self.variance_preserving, "ve": self.variance_exploding, "flow": bool(flow)}
        return next((name for name, holds in systems.items() if holds), None)

    def to_variance_exploding(self) -> Schedule:
        """Return the same process in the coordinates x / alpha (alpha = 1), for the same network of eps or x0.

        `scale_in` takes the network's input back to where it was. Raises InputError if an alpha is 0.
        """
        if self.alpha[-1] == 0:
            raise InputError("a schedule with zero terminal SNR has no variance-exploding form: drop its last level")
        return Schedule(np.ones_like(self.alpha), self.sigma / self.alpha, self.time, self.scale_in * self.alpha)

    def to_variance_preserving(self) -> Schedule:
        """Return the same process in the coordinates x / sqrt(alpha^2 + sigma^2), for the same network of eps or x0.

        `scale_in` takes the network's input back to where it was.
        """
        norm = np.hypot(self.alpha, self.sigma)
        return Schedule(self.alpha / norm, self.sigma / norm, self.time, self.scale_in * norm)

    def zero_terminal_snr(self) -> Schedule:
        """Shift and scale alpha so that the last level is pure noise (Lin et al. 2023, Algorithm 1).

        Only for variance-preserving schedules; the last alpha becomes exactly 0, which eps and score
        predictions cannot start from (x0, v and flow can). Raises InputError otherwise.
        """
        if not self.variance_preserving or len(self) < 2:
            raise InputError("zero_terminal_snr needs a variance-preserving schedule of at least 2 levels")
        first, last = self.alpha[0], self.alpha[-1]
        alpha = (self.alpha - last) * (first / (first - last))
        config = {**self.config, "zero_terminal_snr": True} if self.config else {}
        schedule = Schedule(alpha, np.sqrt(1.0 - alpha**2), self.time, self.scale_in, config)
        return schedule.with_unit_input(config["unit_input"]) if "unit_input" in config else schedule


def _check_levels(schedule: Schedule) -> None:
    alpha, sigma = schedule.alpha, schedule.sigma
    arrays = {"alpha": alpha, "sigma": sigma, "time": schedule.time, "scale_in": schedule.scale_in}
    for name, values in arrays.items():
        if values.ndim != 1 or values.size == 0 or values.shape != alpha.shape:
            raise InputError(f"{name} must be a non-empty 1-D array as long as alpha, got shape {values.shape}")
        if not np.isfinite(values).all():
            raise InputError(f"{name} must be finite")
    if (alpha < 0).any() or (sigma <= 0).any():
        raise InputError("alpha must be >= 0 and sigma > 0 at every level")
    if (np.diff(alpha / sigma) >= 0).any():
        raise InputError("alpha / sigma must fall strictly with the index: index 0 is the cleanest level")


# --- conversions ---------------------------------------------------------------------------------------------------


def from_lambda(lambda_: npt.ArrayLike, system: str = "vp") -> tuple[Array, Array]:
    """Return (alpha, sigma) with `log(alpha / sigma) = lambda_`, any shape, in the system "vp", "ve" or "flow".

    vp: alpha^2 + sigma^2 = 1; ve: alpha = 1; flow: alpha + sigma = 1. lambda_ = -inf is pure noise (not in "ve").

    Raises:
        InputError: the system is unknown, or "ve" is asked for pure noise.
    """
    value = np.asarray(lambda_, dtype=np.float64)
    if system == "ve" and np.isneginf(value).any():
        raise InputError("the variance-exploding system reaches no pure noise: lambda_ must be above -inf")
    return lookup("system", system, _SYSTEMS)(value)


def from_snr(snr: npt.ArrayLike, system: str = "vp") -> tuple[Array, Array]:
    """Return (alpha, sigma) with `alpha^2 / sigma^2 = snr` (>= 0, any shape); systems as in `from_lambda`."""
    value = np.asarray(snr, dtype=np.float64)
    if (value < 0).any():
        raise InputError("snr must be >= 0")
    with np.errstate(divide="ignore"):
        return from_lambda(0.5 * np.log(value), system)


def _sigmoid(value: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -value))


_SYSTEMS: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "vp": lambda lambda_: (np.sqrt(_sigmoid(2 * lambda_)), np.sqrt(_sigmoid(-2 * lambda_))),
    "ve": lambda lambda_: (np.ones_like(lambda_), np.exp(-lambda_)),
    "flow": lambda lambda_: (_sigmoid(lambda_), _sigmoid(-lambda_)),
}


# --- named schedules -----------------------------------------------------------------------------------------------

_NAMED: dict[str, Callable[..., Schedule]] = {}


def _named(build: Callable[P, Schedule]) -> Callable[P, Schedule]:
    """Register a schedule under its function's name and record the arguments it was made from."""
    signature = inspect.signature(build)
    rebuild: Callable[..., Schedule] = build

    @functools.wraps(build)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        arguments = signature.bind(*args, **kwargs)
        arguments.apply_defaults()
        numbers = {
            name: whole(name, value, 1) if name == "T" else number(name, value)
            for name, value in arguments.arguments.items()
        }
        return replace(rebuild(**numbers), config={"name": build.__name__, **numbers})

    _NAMED[build.__name__] = recorded
    return recorded


def make(name: str, **arguments: Any) -> Schedule:
    """Build a schedule by name, e.g. `make("cosine", T=1000)`. Raises InputError for unknown names or arguments."""
    build = lookup("schedule", name, _NAMED)
    arguments = {"T": 1000, **arguments}
    try:
        inspect.signature(build).bind(**arguments)
    except TypeError as error:
        raise InputError(f"schedule {name!r}: {error}") from None
    return build(**arguments)


def names() -> tuple[str, ...]:
    """Return the names that `make` knows."""
    return tuple(_NAMED)


def from_config(config: Mapping[str, Any]) -> Schedule:
    """Rebuild a schedule from its `config`. Raises InputError if the config is empty or names what does not exist."""
    arguments = dict(config)
    if "name" not in arguments:
        raise InputError("this schedule has no name: it was made by hand and cannot be rebuilt from its config")
    zero_terminal_snr = arguments.pop("zero_terminal_snr", False)
    unit_input = arguments.pop("unit_input", None)
    schedule = make(**arguments)
    schedule = schedule.zero_terminal_snr() if zero_terminal_snr else schedule
    return schedule if unit_input is None else schedule.with_unit_input(unit_input)


def _from_betas(betas: Array) -> Schedule:
    """Variance-preserving levels from one-step variances: abar_t = prod (1 - beta_s) (Ho et al. 2020, eq. 4)."""
    # log1p and expm1 keep the digits of sigma^2 = 1 - abar where abar is near 1.
    log_alpha_bar = np.cumsum(np.log1p(-betas))
    return Schedule(np.exp(0.5 * log_alpha_bar), np.sqrt(-np.expm1(log_alpha_bar)))


def _check_betas(beta_start: float, beta_end: float) -> None:
    if not 0 < beta_start <= beta_end < 1:
        raise InputError(f"betas need 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < np.inf:
        raise InputError(f"sigmas need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")


@_named
def linear(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Schedule:
    """Beta linear in t (Ho et al. 2020, section 4)."""
    _check_betas(beta_start, beta_end)
    return _from_betas(np.linspace(beta_start, beta_end, T))


@_named
def scaled_linear(T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
    """sqrt(beta) linear in t (Rombach et al. 2022; the defaults are Stable Diffusion's)."""
    _check_betas(beta_start, beta_end)
    return _from_betas(np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2)


@_named
def cosine(T: int = 1000, s: float = 0.008) -> Schedule:
    """abar_t = f(t) / f(0), f(t) = cos^2((t/T + s) / (1 + s) pi/2), betas capped (Nichol & Dhariwal 2021, eq. 17)."""
    if s < 0:
        raise InputError(f"the cosine offset s must be >= 0, got {s}")
    f = np.cos((np.arange(T + 1) / T + s) / (1 + s) * np.pi / 2) ** 2
    return _from_betas(np.minimum(1 - f[1:] / f[:-1], MAX_COSINE_BETA))


@_named
def sigmoid(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Schedule:
    """Beta a sigmoid of t over [-6, 6] (Xu et al. 2022, GeoDiff)."""
    _check_betas(beta_start, beta_end)
    return _from_betas(_sigmoid(np.linspace(-6, 6, T)) * (beta_end - beta_start) + beta_start)


@_named
def exponential(T: int = 1000, rate: float = 12.0) -> Schedule:
    """`abar = exp(-rate t / T)`: one beta for all steps (the "exp" of diffusers; its rate is the default)."""
    if rate <= 0:
        raise InputError(f"rate must be > 0, got {rate}")
    return _from_betas(np.full(T, -np.expm1(-rate / T)))


@_named
def vp(T: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The VP-SDE at t = 1/T..1: `log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2`.

    Song et al. 2021, eq. 33, which `linear` discretises.
    """
    log_alpha = _log_alpha(T, beta_min, beta_max)
    return Schedule(np.exp(log_alpha), np.sqrt(-np.expm1(2 * log_alpha)))


@_named
def sub_vp(T: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The sub-VP SDE: alpha of `vp`, `sigma = 1 - alpha^2`, less than that of `vp` (Song et al. 2021, eq. 29)."""
    log_alpha = _log_alpha(T, beta_min, beta_max)
    return Schedule(np.exp(log_alpha), -np.expm1(2 * log_alpha))


def _log_alpha(T: int, beta_min: float, beta_max: float) -> Array:
    if not 0 < beta_min <= beta_max < np.inf:
        raise InputError(f"betas need 0 < beta_min <= beta_max, got {beta_min} and {beta_max}")
    t = np.arange(1, T + 1) / T
    log_alpha: Array = -(t**2) * (beta_max - beta_min) / 4 - t * beta_min / 2
    return log_alpha


@_named
def progressive_vae(T: int = 1000, sigma2_start: float = 1e-4, sigma2_slope: float = 2e-2) -> Schedule:
    """One-step variance `sigma_l^2 = 1e-4 + 0.02 l / L`, l = 1..L: the progressive-VAE slides (data in [0, 1])."""
    _check_betas(sigma2_start, sigma2_start + sigma2_slope)
    return _from_betas(sigma2_start + sigma2_slope * np.arange(1, T + 1) / T)


@_named
def geometric(T: int = 10, sigma_min: float = 0.01, sigma_max: float = 1.0) -> Schedule:
    """Variance exploding, sigmas a geometric sequence (Song & Ermon 2019; the defaults are NCSN's)."""
    _check_sigmas(sigma_min, sigma_max)
    return Schedule(np.ones(T), np.geomspace(sigma_min, sigma_max, T))


@_named
def log_linear(T: int = 1000, sigma_min: float = 0.02, sigma_max: float = 10.0) -> Schedule:
    """Variance exploding, log sigma linear in t (Permenter & Yuan 2024): `geometric` with that paper's range."""
    return geometric(T, sigma_min, sigma_max)


@_named
def karras(T: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """Variance exploding, sigma^(1/rho) linear in t (Karras et al. 2022, eq. 5)."""
    _check_sigmas(sigma_min, sigma_max)
    if rho <= 0:
        raise InputError(f"rho must be > 0, got {rho}")
    return Schedule(np.ones(T), np.linspace(sigma_min ** (1 / rho), sigma_max ** (1 / rho), T) ** rho)


@_named
def flow(T: int = 1000, shift: float = 1.0) -> Schedule:
    """Rectified flow: alpha = 1 - t, sigma = t at t = 1/T..1, moved by `t <- shift t / (shift t + 1 - t)`.

    Liu et al. 2022; the shift is Esser et al. 2024, eq. 23; `flow_shift` finds one from the size of an image. The
    network is given the index; one that wants the shifted time, as SD3 and FLUX, needs `s.with_time(1000 * s.sigma)`.
    """
    if shift <= 0:
        raise InputError(f"shift must be > 0, got {shift}")
    t = np.arange(1, T + 1) / T
    total = shift * t + (1 - t)
    return Schedule((1 - t) / total, shift * t / total)


def flow_shift(
    tokens: int, base_shift: float = 0.5, max_shift: float = 1.15, base_tokens: int = 256, max_tokens: int = 4096
) -> float:
    """Return the shift of `flow` for images of so many tokens: `exp(mu)`, with mu linear in the number of tokens.

    The defaults are those of FLUX.1: mu is 0.5 at 256 tokens and 1.15 at 4096.
    """
    if tokens < 1 or not 0 < base_tokens < max_tokens:
        raise InputError(f"tokens must be > 0, and base_tokens below max_tokens, got {tokens}")
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return math.exp(base_shift + slope * (tokens - base_tokens))
