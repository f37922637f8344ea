"""What the GPU benchmark measures: networks, sizes of images and batches, and the same at toy size."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rows import ROOT

from conr.parameters import FinetuneStage, ParamsFile, PretrainStage
from stages import params_file

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Row = dict[str, Any]  # what a cell of the benchmark found


@dataclass(frozen=True)
class Case:
    """A network and a size of images and batches.

    Attributes:
        preset: whose parameters to take.
        size: of the images, in pixels.
        batch: images per step.
        skipped, timed: steps.
        changes: of the preset.
    """

    preset: str
    size: int
    batch: int
    skipped: int = 10
    timed: int = 50
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def parameters(self, changes: Mapping[str, Any] | None = None) -> ParamsFile:
        """The preset with this batch, the case's changes and others."""
        params = params_file.validated(params_file.read(ROOT / f"presets/{self.preset}.yaml"))
        both = {f"{stage}.batch_size": self.batch for stage in STAGES}
        return params_file.changed(params, {**both, **self.changes, **(changes or {})})

    def settings(self, stage: str, changes: Mapping[str, Any] | None = None) -> PretrainStage | FinetuneStage:
        """What a stage reads of them."""
        return params_file.view_of(STAGES[stage], self.parameters(changes))

    def description(self) -> Row:
        """Of the networks."""
        own = self.parameters().network.model_dump()
        return own | {"framework": "byol", "mean": [0.5] * 3, "std": [0.25] * 3}

    def pixels(self, count: int = 0) -> np.ndarray:
        """Random images: enough that no epoch ends before the timed steps do, or so many."""
        count = count or (self.skipped + self.timed) * self.batch
        return random_pixels(count, self.size)


@functools.lru_cache(maxsize=2)
def random_pixels(count: int, size: int) -> np.ndarray:
    """The same (count, size, size, 3) uint8 again, as long as no two others were asked for."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


STAGES = {"pretrain": PretrainStage, "finetune": FinetuneStage}
CASES = {
    "ResNet-18, 32 px, batch 256": Case("cifar10", 32, 256, timed=100),
    "ResNet-18, 32 px, batch 1024": Case("cifar10", 32, 1024),
    "ResNet-34, 96 px, batch 256": Case("stl10", 96, 256),
    "ResNet-34, 224 px, batch 256": Case("imagenet-dogs", 224, 256, timed=15),
}
SMALL = {"network.width": 4, "network.hidden": 32, "network.dimension": 16, "k1": 10, "k2": 2, "k": 10}
TOYS = {"toy, 16 px, batch 16": Case("cifar10", 16, 16, 1, 2, SMALL)}


@dataclass(frozen=True)
class Size:
    """What differs between the real benchmark and its toy.

    Attributes:
        cases: to time; the first is that of the levers and the numerics.
        product: rows of the matrices whose product gives the device's rate.
        samples: of a batch in the numerics.
        images: of an epoch.
        repeats: of the levers.
        backend: of torch.compile.
    """

    cases: Mapping[str, Case]
    product: int
    samples: int
    images: int
    repeats: int
    backend: str


REAL = Size(CASES, 8192, 256, 60_000, 3, "inductor")
TOY = Size(TOYS, 256, 64, 64, 1, "eager")


def wait() -> None:
    """Until the device has done what was asked of it."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
