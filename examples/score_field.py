"""Scores of noised points, learned as NCSN does, and samples: python examples/score_field.py --out score_field.png

The default is short: more --steps resolve the cleaner levels.
"""

import argparse
import tempfile

import fastdiff as fd
from fastdiff import pictures
from fastdiff.score_field import score_field
from fastdiff.train import TrainConfig, data
from fastdiff.train.trainer import train


def main(out: str, objective: str, steps: int) -> None:
    config = TrainConfig(
        data="swiss_roll",
        objective=objective,
        schedule="geometric",
        T=10,
        sigma_min=0.05,
        sigma_max=4.0,
        prediction="score",
        steps=steps,
        batch=256,
        lr=5e-3,
        warmup=50,
        ema=0.99,
        sample_every=steps + 1,
    )
    with tempfile.TemporaryDirectory() as folder:
        ncsn = fd.load(train(config, folder))
    points = data.load(config.data).dataset[:1000][0]
    samples = fd.sample(ncsn.model, ncsn.plan("annealed_langevin", steps=10, per_level=20), (1000, 2))
    fields = [score_field(ncsn.model, points, level, ncsn.schedule, ncsn.prediction) for level in (9, 4, 1)]
    pictures.save_score_fields(fields, points, samples, out)
    print(f"wrote {out}: data, scores by {objective} and samples by annealed Langevin dynamics")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="score_field.png", help="PNG to write")
    parser.add_argument("--objective", default="sliced", help="l_simple (denoising), sliced or implicit")
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    main(**vars(parser.parse_args()))
