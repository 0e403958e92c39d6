"""What `fastdiff eval --bpd` reports: the likelihood of a split of data under a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Subset

from fastdiff.checkpoint import Checkpoint
from fastdiff.errors import InputError, lookup, whole
from fastdiff.likelihood.bound import bound, estimate
from fastdiff.likelihood.ode import log_likelihood
from fastdiff.samplers.ddpm import LEARNED
from fastdiff.train import data as datasets
from fastdiff.train.data import Data

Report = dict[str, Any]
STEPS = 50  # of a sampler whose noisy end is asked for


def likelihood(
    checkpoint: Checkpoint,
    spec: str | None = None,
    *,
    split: str = "held-out",
    count: int | None = None,
    method: str = "vlb",
    seed: int = 0,
    batch: int = 256,
    progress: bool = True,
    **options: Any,
) -> Report:
    """Measure the likelihood of data, each sample given its class where the network knows classes.

    Args:
        checkpoint: the network, where it should compute.
        spec: the data; None is what the checkpoint was trained on.
        split: "held-out" or "train".
        count: how many samples, evenly spread over the split, 2 or more; None is all.
        method: "vlb" (`likelihood.bound`) or "ode" (`likelihood.log_likelihood`).
        seed, batch, progress: as these take them.
        options: of the method, None being its own: "variance" for "vlb"; "sampler" (whose first level is the noisy
            end with 50 steps), "trace" and "probes" for "ode".

    Returns:
        What was measured, JSON-ready: "parts" has mean and standard error over samples of each part and the total, in
        "unit": bits/dim for discrete data, nats/dim (of a density) for continuous ones. "terms" has the means of
        L_0..L_T for "vlb".

    Raises:
        InputError: a name, a number or an option is wrong, the data have another shape or other classes than the
            network, or the network works on latents.
    """
    measure, known = lookup("method", method, _METHODS)
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - known:
        raise InputError(f"{name} is no option of method {method!r}: leave --{name} out, or use another --method")
    if checkpoint.latents is not None:
        raise InputError("the likelihood of latents says nothing of that of the data: evaluate a network of the data")
    if given.get("trace") == "exact" and "probes" in given:
        raise InputError("an exact trace takes no probes: leave --probes out, or use --trace hutchinson")
    steps = min(STEPS, len(checkpoint.schedule))
    plan = checkpoint.plan(given.pop("sampler"), steps=steps) if "sampler" in given else None
    data = _data(checkpoint, spec or checkpoint.data, split)
    number = len(data) if count is None else min(whole("count", count, 2), len(data))
    chosen = datasets.spread(len(data), number)
    x0, label = next(iter(DataLoader(Subset(data.dataset, chosen), batch_size=number)))
    place = next(checkpoint.model.parameters()).device
    cond = {"y": label.to(place)} if checkpoint.classes else {}
    unit, of_nats = ("nats/dim", 1.0) if data.levels is None else ("bits/dim", 1 / math.log(2))
    shared: Report = {"cond": cond, "seed": seed, "batch": batch, "progress": progress, "levels": data.levels}
    given = {**given, "plan": plan} if plan is not None else given
    parts, more = measure(checkpoint, x0.to(place), {**shared, **given}, of_nats / x0[0].numel())
    return {
        "data": data.name,
        "split": split,
        "samples": number,
        "method": method,
        "seed": seed,
        "levels": data.levels,
        "unit": unit,
        "parts": {name: estimate(values)._asdict() for name, values in parts.items()},
        **more,
    }


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return a report as lines of text."""
    head = f"{report['data']}, {report['split']} split, {report['samples']} samples, {report['described']}"
    parts = report["parts"].items()
    return [
        head,
        *(f"{name:<18}{p['mean']:>10.4f} +- {p['standard_error']:.4f} {report['unit']}" for name, p in parts),
    ]


Parts = tuple[dict[str, Tensor], Report]


def _vlb(checkpoint: Checkpoint, x0: Tensor, options: Report, scale: float) -> Parts:
    options = {"variance": LEARNED if checkpoint.learns_variance else "small", **options}
    if options["variance"] == LEARNED and not checkpoint.learns_variance:
        raise InputError(f"variance {LEARNED!r} needs a network that learned its variance: use 'small' or 'large'")
    model, schedule, prediction = checkpoint.model, checkpoint.schedule, checkpoint.prediction
    terms = bound(model, x0, schedule, prediction=prediction, clip=checkpoint.clip, **options).terms * scale
    T = len(checkpoint.schedule)
    parts = {
        "L_T": terms[:, T],
        f"L_1 + ... + L_{T - 1}": terms[:, 1:T].sum(dim=1),
        "L_0": terms[:, 0],
        "bound": terms.sum(dim=1),
    }
    described = f"variational bound, variance {options['variance']}"
    return parts, {"variance": options["variance"], "terms": terms.mean(dim=0).tolist(), "described": described}


def _ode(checkpoint: Checkpoint, x0: Tensor, options: Report, scale: float) -> Parts:
    options = {"trace": "hutchinson", **options}
    nats = log_likelihood(checkpoint.model, x0, checkpoint.schedule, prediction=checkpoint.prediction, **options)
    bounded = "density" if options["levels"] is None else "bound by dequantisation"
    described = f"probability-flow ODE, {options['trace']} trace, {bounded}"
    return {"-log p": -nats.cpu() * scale}, {"trace": options["trace"], "described": described}


_METHODS: dict[str, tuple[Callable[..., Parts], frozenset[str]]] = {
    "vlb": (_vlb, frozenset({"variance"})),
    "ode": (_ode, frozenset({"sampler", "trace", "probes"})),
}


def _data(checkpoint: Checkpoint, spec: str, split: str) -> Data:
    """Return data that fit the network. Raises InputError if there are none."""
    shape = checkpoint.shape
    if ":" in spec:
        data = datasets.load(spec, split=split, size=shape[-1], channels=shape[0])
    else:
        data = datasets.load(spec, split=split)
        if len(data.shape) == len(shape) == 3 and data.shape != shape:
            data = datasets.load(spec, split=split, size=shape[-1])
    if data.shape != shape or data.classes != checkpoint.classes:
        raise InputError(
            f"{spec} has samples of shape {data.shape} in {len(data.classes)} classes, and the network was trained on "
            f"{shape} in {len(checkpoint.classes)}: give the data it was trained on with --data"
        )
    if not len(data):
        raise InputError(f"{spec} has no {split} split: use another --split")
    return data
