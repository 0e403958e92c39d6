"""What makes a scheduler of diffusers take its steps with the kernels: a class to put before it among the bases."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.integrations.diffusers import whole_loop
from fastdiff.integrations.diffusers.runs import Run, Runs, State, run_of
from fastdiff.integrations.diffusers.tables import Table
from fastdiff.plan import Plan

Generator = torch.Generator | list[torch.Generator]
Seed = int | Sequence[int]
_MOST_TABLES = 64


class Noise(NamedTuple):
    """Where the noise of a step comes from: what is given, the generator, the seed, or torch's own generator.

    Attributes:
        generator: one for the batch, or one for each sample.
        seed: of the project's own noise, whose draw is the row: one for the batch, or one for each sample.
        given: the noise itself.
        dtype: that noise is drawn in where it is neither given nor of a seed; None: that of the model's output.
        spare: whether it is drawn also in the rows that `_always_draws` names.
    """

    generator: Generator | None = None
    seed: Seed | None = None
    given: Tensor | None = None
    dtype: torch.dtype | None = None
    spare: bool = True


class Place(NamedTuple):
    """A row that is asked for, and the run that it is of."""

    run: Run
    row: int


class Stepped(NamedTuple):
    """What a step gives: the next state, and x0 if it was asked for."""

    sample: Tensor
    x0: Tensor | None


class OfRun:
    """An attribute that each run of a scheduler has for itself."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, scheduler: Adapter | None, owner: type) -> Any:
        if scheduler is None:
            return self
        run, timesteps = scheduler._runs.shown
        if self._name == "timesteps":
            return run.timesteps() if timesteps is None else timesteps
        try:
            return run.values[self._name]
        except KeyError:
            raise AttributeError(f"{type(scheduler).__name__} has no attribute {self._name!r}") from None

    def __set__(self, scheduler: Adapter, value: Any) -> None:
        run, _ = scheduler._runs.shown
        if self._name == "timesteps":
            if value is None:  # of a scheduler that has none before `set_timesteps`
                return
            run.take(value)
            scheduler._runs.show(run, value)
        else:
            run.values[self._name] = value


class Adapter:
    """A scheduler whose step is `fastdiff::step`, with the configuration, the levels and the calls of diffusers' class.

    The plan is made from what diffusers' `set_timesteps` has set, so timesteps and sigmas are diffusers' own. What
    belongs to a run is kept for each run (see `runs`), so that loops that share a scheduler do not disturb each other.

    Attributes:
        seed: of the project's own noise where `step` is given neither generator nor seed; None: torch's own generator.
    """

    seed: Seed | None = None
    # What `set_timesteps` and `step` of diffusers' class set.
    _of_run: ClassVar[tuple[str, ...]] = ("timesteps", "sigmas", "num_inference_steps", "_step_index", "_begin_index")
    # Whether a step may be asked for at any timestep, not only at one of those that were set.
    _at_any_time: ClassVar[bool] = False
    # Whether a loop that begins at none of the timesteps that were set begins at the last of them, as in diffusers.
    _else_at_last: ClassVar[bool] = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name in cls._of_run:
            setattr(cls, name, OfRun(name))
        set_timesteps = getattr(cls, "set_timesteps", None)
        if set_timesteps is not None and not hasattr(set_timesteps, "begins_a_run"):
            setattr(cls, "set_timesteps", _beginning_a_run(set_timesteps))  # noqa: B010

    @functools.cached_property
    def _runs(self) -> Runs:
        return Runs(Run(self, {}))

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy holds: the run that is shown, without the loops at work."""
        run, timesteps = self._runs.shown
        held = {name: value for name, value in vars(self).items() if name != "_runs"}
        return {**held, "_run": (run.values, timesteps)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        values, timesteps = state.pop("_run")
        vars(self).update(state)
        run = Run(self, values)
        if timesteps is not None:
            run.take(timesteps)
        self._runs.show(run, timesteps)

    def plan(self, first: int = 0, **options: Any) -> Plan:
        """Return the plan of the run that `set_timesteps` has begun, from row `first` on.

        Options are those that `step` takes and that shape its rows, such as `eta`. The plan's rows have the inputs'
        scales, so that `fastdiff.sample` can run it; its state is scaled as diffusers' is.

        Raises:
            InputError: an option is unknown or out of range.
        """
        run, _ = self._runs.shown
        try:
            plan = self._plan(run, first, **options)
        except TypeError as error:
            raise InputError(f"{type(self).__name__}: {error}") from None
        return replace(plan, init_scale=float(self.init_noise_sigma))

    # --- what each scheduler says

    init_noise_sigma: Any
    config: Any
    alphas_cumprod: Tensor

    _plan: Callable[..., Plan]
    """`_plan(run, first, **options)` returns the plan of a run from one of its rows on; options as `step` has them."""

    def _always_draws(self, row: int, run: Run) -> bool:
        """Return whether diffusers draws noise in a row even where none is added, which moves the generator on."""
        return False

    def _threshold(self) -> tuple[float, float] | None:
        """Return the quantile of dynamic thresholding and the largest bound, or None."""
        if not self.config.get("thresholding"):
            return None
        return self.config.dynamic_thresholding_ratio, self.config.sample_max_value

    # --- a step

    def _step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        noise: Noise,
        options: dict[str, Any],
        *,
        x0: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Stepped:
        """Take a step; `x0` asks for x0 too, `dtype` is that of the result (None: of the model's output)."""
        place, loop = self._place(timestep), whole_loop.running.get()
        if loop is not None:
            return Stepped(loop.run(self, place, sample, noise, options), None)
        state = self._state(place, sample, options)
        stepped = self._advance(state, place, model_output, sample, noise, x0, dtype or model_output.dtype)
        place.run.advance(state, place.row, stepped.sample)
        return stepped

    def _place(self, timestep: float | Tensor) -> Place:
        """Return the row that a timestep asks for, and let the scheduler's attributes show its run.

        A tensor that is not of the run's timesteps, or a number, asks by its value, in the run of this thread. Where
        that is none of its times, it is the row to come.
        """
        run = run_of(timestep, self) if isinstance(timestep, Tensor) else None
        shown, _ = self._runs.shown
        if run is not None:
            assert isinstance(timestep, Tensor)
            if run is not shown:
                self._runs.show(run, None)
            row = run.place(timestep)
            return Place(run, row)
        value = float(timestep)
        found = shown.row_at(value)
        if self._at_any_time:
            return Place(shown, found) if found is not None else Place(self._alone(shown, value), 0)
        begins = shown.values.get("_step_index") is None
        if begins and shown.begin is not None:
            found = shown.begin
        elif found is None:
            found = len(shown.times) - 1 if begins and self._else_at_last else shown.values.get("_step_index")
        if found is None or found >= len(shown.times):
            raise InputError(f"timestep {value:g} is none of scheduler.timesteps: pass one of those to step")
        return Place(shown, found)

    def _place_of_input(self, timestep: float | Tensor) -> Place:
        """Return the row that an input is scaled for; as in diffusers, the first of a loop shows in `step_index`."""
        place = self._place(timestep)
        if place.run.values.get("_step_index") is None:
            place.run.values["_step_index"] = place.row
        self.is_scale_input_called = True
        return place

    def _alone(self, run: Run, time: float) -> Run:
        """Return a run of one timestep."""
        alone = Run(self, run.values)
        alone.times = [time]
        return alone

    def _state(self, place: Place, sample: Tensor, options: dict[str, Any]) -> State:
        run, row = place
        state = run.state(row, sample)
        if state is None or state.options != options:
            dtype = torch.promote_types(sample.dtype, torch.float32)
            state = State(self._table(run, row, options, sample.device, dtype), options, row, sample)
            run.begins(state)
        return state

    def _table(self, run: Run, first: int, options: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Table:
        """Return the table of a plan, which is kept for the run and for later ones of the same levels."""
        # Users change the configuration and the training levels: both belong to the key, and live as long as it does.
        made_of = self.config, getattr(self, "alphas_cumprod", None)
        key = *map(id, made_of), first, tuple(options.items()), device, dtype
        if key not in run.tables:
            sigmas = run.sigmas.tobytes() if run.values.get("sigmas") is not None else b""
            of_levels = *key, tuple(run.times), sigmas, run.values.get("num_inference_steps")
            tables = self._runs.tables
            found = tables.get(of_levels)
            if found is None:
                if len(tables) >= _MOST_TABLES:
                    tables.clear()
                found = tables[of_levels] = Table(self._plan(run, first, **options), device, dtype), made_of
            run.tables[key] = found
        return run.tables[key][0]

    def _advance(
        self,
        state: State,
        place: Place,
        model_output: Tensor,
        sample: Tensor,
        noise: Noise,
        keeps_x0: bool,
        dtype: torch.dtype,
    ) -> Stepped:
        if torch.is_grad_enabled() and (sample.requires_grad or model_output.requires_grad):
            # Kernels have no gradient. Plain torch has, and its float64 keeps nothing that a step overwrites.
            run, options, device = place.run, dict(state.options), sample.device
            state.differentiate(self._table(run, state.first, options, device, torch.float64))
        table, batch = state.table, sample.shape[0]
        row = place.row - state.first
        out, variance = model_output, None
        if model_output.shape != sample.shape:
            out, learned = _halves(model_output, sample)
            variance = learned if table.learns_variance else None
        x = sample.to(table.dtype, copy=True)
        key = z = None
        if table.draws[row] or (noise.spare and self._always_draws(place.row, place.run)):
            key, z = self._noise(noise, table, out, place)
        elif table.ever_draws:
            z = x  # its coefficient is 0 in this row
        out = out.to(table.dtype) if out.dtype == torch.float64 else out
        rounds = table.dtype == torch.float32 and dtype.itemsize < 4  # the step does it in the same pass
        result = torch.empty_like(x, dtype=dtype) if rounds else x
        x0 = torch.empty_like(x, dtype=torch.promote_types(sample.dtype, torch.float32)) if keeps_x0 else None
        table.step(
            *(x, out, table.rows(row, batch)),
            key=key,
            z=z,
            copy=None if result is x else result,
            variance=variance,
            y=state.y,
            history=state.history,
            x0=x0,
            threshold=self._threshold(),
        )
        return Stepped(result.to(dtype), x0)

    def _noise(self, noise: Noise, table: Table, out: Tensor, place: Place) -> tuple[Tensor | None, Tensor | None]:
        """Return whose noise to draw in the kernel, or noise."""
        if noise.given is not None:
            if noise.generator is not None:
                raise ValueError("generator and variance_noise both say what the noise is: pass one of them")
            return None, noise.given.to(out.device, table.dtype)
        seed = self.seed if noise.seed is None and noise.generator is None else noise.seed
        if seed is not None:
            return table.key(seed, len(out)), None
        return None, self._draw(noise, out, place).to(table.dtype)

    def _draw(self, noise: Noise, like: Tensor, place: Place) -> Tensor:
        """Return noise as diffusers draws it in a row: from the generator, or torch's own."""
        dtype = noise.dtype or like.dtype
        z: Tensor = randn_tensor(like.shape, generator=noise.generator, device=like.device, dtype=dtype)
        return z


def _halves(model_output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    """Return the prediction and the learned variance of a network's output."""
    channels = sample.shape[1] if sample.ndim > 1 else 0
    if model_output.ndim != sample.ndim or model_output.shape[1] != 2 * channels:
        got, wanted = tuple(model_output.shape), tuple(sample.shape)
        raise InputError(f"the model's output must have the sample's shape {wanted} or twice its channels, got {got}")
    return model_output[:, :channels], model_output[:, channels:]


def _beginning_a_run(set_timesteps: Callable[..., None]) -> Callable[..., None]:
    """Return `set_timesteps` so that it begins a run, and leaves the last one as it was if it raises."""

    @functools.wraps(set_timesteps)
    def begin(self: Adapter, *args: Any, **kwargs: Any) -> None:
        before = self._runs.shown
        self._runs.show(Run(self, {**before[0].values, "_step_index": None}), None)
        try:
            set_timesteps(self, *args, **kwargs)
            run, _ = self._runs.shown
            if run.values.get("sigmas") is not None:
                _ = run.sigmas  # where they lie on the device, the host waits for it here, and not in a step
        except BaseException:
            self._runs.show(*before)
            raise

    vars(begin)["begins_a_run"] = True
    return begin
