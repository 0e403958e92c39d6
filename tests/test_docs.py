"""What the documents show runs, and does what they say."""

import re
from pathlib import Path

import torch
from typing_extensions import Unpack

import fastdiff as fd
from fastdiff.samplers import registry
from fastdiff.samplers.rows import Options, Rows

ROOT = Path(__file__).parents[1]


def code_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


def test_the_sampler_of_contributing(monkeypatch):
    """The example of CONTRIBUTING.md is the loop of Permenter & Yuan 2024, section 5."""
    monkeypatch.setattr(registry, "SAMPLERS", {})  # the name is taken
    names = {
        "sampler": registry.sampler,
        "Plan": fd.Plan,
        "Schedule": fd.Schedule,
        "Rows": Rows,
        "Options": Options,
        "Unpack": Unpack,
    }
    (example,) = code_blocks("CONTRIBUTING.md")
    exec(example, names)

    def model(x, t):
        return torch.tanh(x) * torch.cos(t).view(-1, 1)

    schedule = fd.schedules.log_linear(10)
    plan = names["gradient_estimation"](schedule, steps=10, gamma=2.0, spacing="trailing", clip=None)
    x = fd.noise.normal((3, 4), seed=1).double() * schedule.sigma[-1]
    got = fd.sample(model, plan, (3, 4), seed=1, dtype=torch.float64)
    before = None
    for i in reversed(range(10)):
        eps = model(x, torch.full((3,), float(i), dtype=torch.float64))
        mean = eps if before is None else 2.0 * eps - 1.0 * before
        x = x + ((schedule.sigma[i - 1] if i else 0.0) - schedule.sigma[i]) * mean
        before = eps
    # Ten rows of float64 arithmetic.
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


def test_the_readme_runs():
    """Every Python block of README.md runs as it stands."""
    for block in code_blocks("README.md"):
        exec(block, {})
