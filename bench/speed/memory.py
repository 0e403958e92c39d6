"""What a job allocates, as torch's allocators count it."""

from __future__ import annotations

import torch

from fastdiff.bench.speed.work import Job, Work


def peak(work: Work, job: Job) -> int:
    """Return the most bytes that one call holds at a time of those that it allocates itself, its results included.

    The call before it has made what is kept between calls: tables of levels, compiled code.
    """
    with job.within():
        job.call()
        return _peak_on_gpu(job) if work.device.type == "cuda" else _peak_on_cpu(job)


def _peak_on_cpu(job: Job) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = job.call()
    del result  # and not before the profile has ended
    held = most = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def _peak_on_gpu(job: Job) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    job.call()
    return torch.cuda.max_memory_allocated() - before
