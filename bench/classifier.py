"""The judge of samples: a small convolutional network, trained on real images alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 32  # few enough that a few hundred images estimate their covariance
CLASSES = 10
_CHANNELS = 32
_BATCH = 64
_LEARNING_RATE = 3e-3


class Classifier(nn.Module):
    """Scores [N, 10] of digits [N, 1, 8, 8] in [-1, 1]; what enters the last layer is the feature space."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, _CHANNELS, 3, padding=1),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(_CHANNELS, 2 * _CHANNELS, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(2 * _CHANNELS * 4 * 4, FEATURES),
            nn.SiLU(),  # no unit dies, so the covariance of the features has full rank
        )
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        return scores

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return the features of images [N, 1, 8, 8], float32 [N, FEATURES]."""
        found: Tensor = self.body(x)
        return found

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Return the classes of images [N, 1, 8, 8], int64 [N]."""
        scores: Tensor = self(x)
        return scores.argmax(dim=1)

    def fingerprint(self) -> str:
        """Return a SHA-256 of the weights."""
        digest = hashlib.sha256()
        for weight in self.state_dict().values():
            digest.update(weight.numpy().tobytes())
        return digest.hexdigest()


def train(x: Tensor, labels: Tensor, *, epochs: int = 40, seed: int = 0) -> Classifier:
    """Train on images [N, 1, 8, 8] and labels int64 [N], each image shifted by up to a pixel; about 5 s for the digits.

    The weights are a function of the arguments: torch's global random state is neither read nor changed.
    """
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(seed)
        classifier = Classifier()
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(x)), _BATCH):
                loss = F.cross_entropy(classifier(_shifted(x[batch])), labels[batch], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            decay.step()
    return classifier.eval()


def _shifted(x: Tensor) -> Tensor:
    """Move each image [N, 1, H, W] by -1, 0 or 1 pixel along each axis; what comes into view is background, -1."""
    height, width = x.shape[2:]
    windows = F.pad(x, (1, 1, 1, 1), value=-1.0).unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(3, (2, len(x)))
    return windows[torch.arange(len(x)), :, down, right]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: more do not pay for so small a network, and sums would depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
