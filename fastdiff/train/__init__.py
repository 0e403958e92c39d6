"""Training: objectives, data, and a loop whose resumed runs are bit-identical. Needs the extra `train`."""

from fastdiff.train.config import TrainConfig

__all__ = ["TrainConfig"]
