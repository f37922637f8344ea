"""Networks so small that a training step takes milliseconds, and images and a checkpoint for them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from conr.training.checkpoints import Checkpoint
from conr.training.weights import ModelSpec


def small_spec(**changes: Any) -> ModelSpec:
    """A ResNet-18 of width 4 for images of a few pixels, with features of length 8; and changes."""
    return ModelSpec(**({"width": 4, "hidden": 16, "dimension": 8} | changes))


def patterned(labels: NDArray[np.int64], noise: float = 20.0) -> NDArray[np.uint8]:
    """Images of 8 pixels, noise about one random pattern for each label: (N, 8, 8, 3)."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 256, (labels.max() + 1, 8, 8, 3))
    noisy = patterns[labels] + random.normal(scale=noise, size=(len(labels), 8, 8, 3))
    return noisy.clip(0, 255).astype(np.uint8)


class SmallEncoder(nn.Sequential):
    """One convolution, in the place of `conr.models.resnet.Encoder`."""

    features = 8

    def __init__(self, *arguments: object) -> None:
        layers = nn.Conv2d(3, self.features, 3, bias=False), nn.BatchNorm2d(self.features), nn.ReLU()
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Unsaved(Checkpoint):
    """Keeps nothing: the runs are short."""

    due = False

    def __init__(self) -> None:
        pass

    def load(self) -> None:
        return None

    def save(self, state: object) -> None:
        pass
