"""One step of a sampler, given the network's outputs: what fastdiff does, and what others do for the same result.

Every peer starts from the state and the outputs of one network evaluation and ends with the next state, which in
float32 is what the network reads next. Where the network reads bf16, the next state is also given in bf16: fastdiff's
step writes it in the same pass, plain torch casts it, and a diffusers pipeline keeps its state in bf16 to begin with.

With guidance the network's output holds both branches, the unconditional one first, as in a diffusers pipeline.

On a GPU fastdiff's step is timed by each backend, called by itself and inside a CUDA graph, and with fast normals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench.speed.samplers import ROW, SAMPLERS, STEPS, Step, scheduler
from fastdiff.bench.speed.work import CPU, Job, Tensors, Work, backend, images, noise_key, philox, with_gpu_backends
from fastdiff.ops import reference, schema
from fastdiff.plan import FAST_NORMALS

GUIDANCE = 2.0
GRAPH_STEPS = 50  # in one CUDA graph, as many as a loop has


class StepWork(Work):
    """A step on images [B, ...]: x and history are float32, the network's output [branches * B, ...] is of `dtype`."""

    def __init__(
        self, sampler: str, guided: bool, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU
    ) -> None:
        self.sampler, self.shape, self.dtype, self.device = SAMPLERS[sampler](), shape, dtype, device
        self.start = images(shape, torch.float32, 0, device)
        self.x = self.start.clone()
        self.network = torch.cat([images(shape, dtype, 1 + branch, device) for branch in range(1 + guided)])
        self.w = GUIDANCE if guided else None
        self.model_input = None if dtype == torch.float32 else torch.empty(shape, dtype=dtype, device=device)
        self.last = images((self.sampler.plan.history_slots, *shape), torch.float32, 3, device)
        self.history = self.last.clone()
        self.elements = self.x.numel()
        written = self.x.nbytes + self.history.nbytes
        cast = 0 if self.model_input is None else self.model_input.nbytes
        self.traffic = 2 * written + cast + self.network.nbytes
        self._known: dict[int, Tensors] = {}

    def jobs(self) -> Mapping[str, Callable[[], Job]]:
        """fastdiff, plain torch, diffusers; and the memory's limit: on a CPU where a step moves three images' bytes."""
        jobs: dict[str, Callable[[], Job]] = {
            **with_gpu_backends(self.fastdiff, self.device),
            "dispatched": partial(self.fastdiff, name="step"),
            "eager": self.eager,
            "diffusers": self.diffusers,
        }
        if self.device.type == "cuda":
            sampled = {"sampled": self.sampled} if self.model_input is None else {}
            return {**jobs, **sampled, **self._on_gpu(), "copy": self.copy}
        return {**jobs, "limit": self.limit} if self.traffic == 3 * self.x.nbytes else jobs

    def _on_gpu(self) -> dict[str, Callable[[], Job]]:
        jobs: dict[str, Callable[[], Job]] = {}
        for prefix, ops in {"": "auto", **{f"{name}-": name for name in schema.GPU_BACKENDS}}.items():
            jobs[f"{prefix}graph"] = partial(self.graph, ops)
            if self.sampler.plan.draws_noise:
                jobs[f"{prefix}fast"] = partial(self.fastdiff, ops, normals=FAST_NORMALS)
        return jobs

    def restore(self) -> None:
        """Put the state back."""
        self.x.copy_(self.start)
        self.history.copy_(self.last)

    def fastdiff(self, ops: str = "auto", name: str = "step_directly", normals: int = 0) -> Job:
        """The step in place, with the check for NaN that `fastdiff.sample` asks for; `ops` is the backend."""
        plan, batch, device = self.sampler.plan, self.shape[0], self.device
        step = getattr(backend(ops, device), name)
        out, uncond, w = self._branches()
        row = torch.full((batch,), ROW, device=device)
        key = noise_key(batch, device) if plan.draws_noise else None
        first_bad = torch.full((batch,), 2 * len(plan), device=device)
        table, layout = torch.from_numpy(plan.table.copy()).float().to(device), plan.layout | normals
        call = partial(step, self.x, out, table, layout, row, uncond, w, key, self.model_input, first_bad)
        if plan.history_slots:
            call = partial(call, None, None, None, None, self.history)  # no variance, scale, threshold or y
        job = self._job(call, self._written, partial(philox, self.shape, "step", ROW, device))
        if normals:
            return replace(job, hides_noise=True)
        return job if device == CPU else replace(job, bits=partial(self.bits, 1))

    def sampled(self) -> Job:
        """The step as `fastdiff.sample` calls it in float32: it also writes the network's next input."""
        twin = copy(self)
        twin.model_input, twin._known = torch.empty_like(self.x), {}
        return twin.fastdiff()

    def graph(self, ops: str) -> Job:
        """Steps in a row as one CUDA graph."""
        job = self.fastdiff(ops)
        job.call()  # compiles, which is forbidden while a graph is captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(GRAPH_STEPS):
                job.call()
        bits = partial(self.bits, GRAPH_STEPS)
        return replace(job, call=partial(_replay, graph, job.call), repeats=GRAPH_STEPS, bits=bits)

    def eager(self) -> Job:
        """Plain torch, which returns new tensors."""
        call = partial(_eager, self.sampler.eager, self.start, self.network, self.w, self.sampler.step(), *self.last)
        return self._job(call, _named, partial(torch.randn, self.shape, device=self.device))

    def diffusers(self) -> Job:
        """A scheduler as a pipeline calls it; making it and setting its timesteps is not timed."""
        theirs = scheduler(self.sampler.scheduler, self.sampler.config)
        theirs.set_timesteps(STEPS, device=self.device)
        if len(self.last):
            theirs.model_outputs, theirs.lower_order_nums = [None, self.last[0].to(self.dtype)], 1
        t, x = theirs.timesteps[ROW], self.start.to(self.dtype)
        call = partial(_pipeline, theirs, self.network, self.w, t, x, **self.sampler.options)
        noise = partial(torch.randn, self.shape, dtype=self.dtype, device=self.device)
        job = self._job(call, lambda x: {"x": x}, noise)
        return replace(job, computes=self.dtype)

    def limit(self) -> Job:
        """`x += y` in float32: what the memory allows to anything that moves as many bytes, in place."""
        y = images(self.shape, torch.float32, seed=1)
        return Job(partial(self.x.add_, y), lambda x: {"x": x}, lambda z: {"x": self.start.double() + y.double()})

    def copy(self) -> Job:
        """A copy that reads and writes as many bytes as the step does: what a GPU's memory allows."""
        size = (self.traffic // 8,)
        y = images(size, torch.float32, 1, self.device)
        return Job(partial(torch.empty_like(y).copy_, y), lambda copied: {"copied": copied}, lambda z: {"copied": y})

    def bits(self, times: int) -> Tensors:
        """Return what the cpu backend makes of the same numbers in some steps in a row."""
        if times not in self._known:
            self._known[times] = self._on_cpu(times)
        return self._known[times]

    def _on_cpu(self, times: int) -> Tensors:
        twin = copy(self)
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        twin.__dict__.update({name: value.to(CPU, copy=True) for name, value in tensors.items()})
        twin.device = CPU
        twin.restore()
        step = twin.fastdiff().call
        for _ in range(times):
            step()
        return twin._written(None)

    def _job(self, call: partial[Any], read: Callable[[Any], Tensors], noise: Callable[[], Tensor]) -> Job:
        return Job(call, read, self._expected, noise if self.sampler.plan.draws_noise else None)

    def _branches(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the conditional output, the unconditional one and w [B]; the last two are None without guidance."""
        if self.w is None:
            return self.network, None, None
        uncond, out = self.network.chunk(2)
        return out, uncond, torch.full((len(out),), self.w, device=self.device)

    def _written(self, _: object) -> Tensors:
        cast = {} if self.model_input is None else {"model_input": self.model_input}
        return {"x": self.x, "history": self.history, **cast}

    def _expected(self, z: Tensor | None) -> Tensors:
        """The specification in float64, from the plan's float64 table."""
        x, history, plan = self.start.double(), self.last.double(), self.sampler.plan
        out, uncond, w = self._branches()
        table = torch.from_numpy(plan.table.copy()).to(self.device)
        row = torch.full((len(x),), ROW, device=self.device)
        reference.step(x, out, table, plan.layout, row, uncond, w, history=history, z=z)
        return {"x": x, "history": history, "model_input": x}


def _eager(
    sampler: Callable[..., tuple[Tensor, ...]], x: Tensor, network: Tensor, w: float | None, step: Step, *last: Tensor
) -> tuple[Tensor, ...]:
    out = network.float()
    if w is not None:
        uncond, cond = out.chunk(2)
        out = uncond + w * (cond - uncond)
    x, *history = sampler(x, out, step, *last)
    return x, x.to(network.dtype), *history


def _replay(graph: torch.cuda.CUDAGraph, step: object) -> None:
    """Replay the graph; `step` keeps the tensors that it reads alive."""
    graph.replay()


def _named(found: tuple[Tensor, ...]) -> Tensors:
    x, model_input, *history = found
    return {"x": x, "model_input": model_input, **({"history": torch.stack(history)} if history else {})}


def _pipeline(theirs: Any, network: Tensor, w: float | None, t: Tensor, x: Tensor, **options: Any) -> Any:
    if w is not None:
        uncond, cond = network.chunk(2)
        network = uncond + w * (cond - uncond)
    if hasattr(theirs, "model_outputs"):
        theirs._step_index = ROW  # a multistep scheduler counts its calls, and would run out of rows
    return theirs.step(network, t, x, return_dict=False, **options)[0]
