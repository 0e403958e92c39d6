"""Training on several processes: the same run, split."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastdiff.checkpoint import WEIGHTS, newest_step
from fastdiff.train import TrainConfig
from fastdiff.train.trainer import train

ROOT = Path(__file__).parents[2]
CONFIG = TrainConfig(data="moons", width=16, T=50, steps=20, batch=16, warmup=5, schedule="cosine")
# After 20 steps of 16 samples every one of 4 levels is known ten times, and the losses decide about the last ten.
IMPORTANCE = replace(CONFIG, objective="l_gamma", weighting="min_snr", times="importance", T=4, steps=30)
TRAIN = """
import sys
from fastdiff.train import TrainConfig
from fastdiff.train.trainer import train
train(TrainConfig(**eval(sys.argv[1])), sys.argv[2], progress=False)
"""


@pytest.mark.parametrize("config", [CONFIG, IMPORTANCE], ids=["uniform", "importance"])
def test_two_processes_train_what_one_does(config: TrainConfig, tmp_path: Path) -> None:
    """Every sample of a batch keeps its data, time, label and noise, so only the order of sums differs.

    Both processes learn the losses of the whole batch, and so draw the same times.
    """
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(str(script), repr(config.to_dict()), str(tmp_path / "two")),
        ],
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=300,
        check=True,
    )
    train(config, tmp_path / "one", progress=False)
    one, two = (load_file(newest_step(tmp_path / run) / WEIGHTS) for run in ("one", "two"))
    for name, value in one.items():
        # Each step of Adam at 1e-3 moves a weight by up to 1e-3; gradients differ in the last digit of float32.
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
