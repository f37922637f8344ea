"""What a training will cost on this device: the stage itself, run for a few epochs on some of the images.

All that an epoch does grows in proportion to the images, but for saving the checkpoint. So an epoch on some of the
images says what one on all of them takes, whatever its parts are, and nothing that a stage does is forgotten.
"""

import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from conr.progress import Advance, Progress
from conr.training.checkpoints import SAVING, Checkpoint

WARM_UP_STEPS = 3
EPOCHS = 4  # timed after the warm-up; the first of them counts for its beginning only
BUDGET = 8.0  # seconds that the steps of these epochs should take together
PATIENCE = 20.0  # seconds that they may take; with slower steps the warm-up's must do


class Training(Protocol):
    """A training stage, everything settled but the images and how long."""

    def __call__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        epochs: int,
        checkpoint: Checkpoint,
        progress: Progress,
    ) -> object:
        """Train on (n, H, W, 3) images, tell of every step, and examine the features after every epoch."""


@dataclass(frozen=True)
class Measurement:
    """What some epochs took.

    Attributes:
        images: how many images they had.
        step_flops: floating-point operations of a step, a multiply-add counted as two.
        step: seconds of a step.
        start: seconds that the first epoch took on top (the first clustering), with these images.
        end: seconds of examining the features after an epoch (clustering, scores), with these images.
        save: seconds of saving a checkpoint.
        checkpoint: bytes of a checkpoint.
    """

    images: int
    step_flops: int
    step: float
    start: float
    end: float
    save: float
    checkpoint: int


@dataclass(frozen=True)
class Cost:
    """What a stage will take, by a measurement.

    Attributes:
        measured: a few epochs of it.
        images: how many images it trains on.
        batch_size: images per step.
        epochs: how long.
        ends: after how many of the epochs it examines the features.
        runs: how often it is run, once a seed.
        start_up: seconds before the first run.
    """

    measured: Measurement
    images: int
    batch_size: int
    epochs: int
    ends: int
    runs: int = 1
    start_up: float = 0.0

    @property
    def steps(self) -> int:
        """Steps of an epoch; the last partial batch is dropped."""
        return self.images // self.batch_size

    @property
    def epoch_flops(self) -> int:
        """Floating-point operations of the steps of an epoch."""
        return self.steps * self.measured.step_flops

    @property
    def rate(self) -> float:
        """Floating-point operations per second in a step."""
        return self.measured.step_flops / self.measured.step

    @property
    def epoch_seconds(self) -> float:
        """Seconds of an epoch, its share of the examinations and of the savings included."""
        computing = self.steps * self.measured.step + self._scale * self.measured.end * self.ends / self.epochs
        return computing + min(self.measured.save, SAVING * computing)

    @property
    def seconds(self) -> float:
        """Seconds of all runs."""
        return self.start_up + self.runs * (self._scale * self.measured.start + self.epochs * self.epoch_seconds)

    @property
    def _scale(self) -> float:
        return self.images / self.measured.images


def measure(
    train: Training,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    batch_size: int,
    fewest: int,
    device: torch.device,
    folder: Path,
    progress: Progress,
) -> Measurement:
    """Warm up and count on three steps, then time as many as the budget allows, at most whole epochs.

    Args:
        train: the stage.
        images: (N, H, W, 3) uint8, all that it will train on.
        labels: (N,) int64, −1 where unknown; or None.
        batch_size: images per step, at most N.
        fewest: images that it needs at least, such as one a cluster.
        device: where it trains.
        folder: where checkpoints may be written, on the file system that will hold the real ones.
        progress: told of every step.
    """
    needed = math.ceil(fewest / batch_size)
    count = max(WARM_UP_STEPS, needed) * batch_size
    counter = FlopCounterMode(display=False)
    watch = _Stopwatch(1, device, progress, counter)
    checkpoint = _TimedCheckpoint(folder / "warm-up")
    train(*_some(images, labels, count), 1, checkpoint, watch)
    step_flops = counter.get_total_flops()
    step = min(np.diff(watch.stepped).tolist())  # of the second step, slowed down by counting, and those after it
    steps = min(max(int(BUDGET / EPOCHS / step), needed, 1), len(images) // batch_size)
    if steps * EPOCHS * step > PATIENCE:
        end = watch.ended[0] - watch.stepped[-1] - checkpoint.seconds[0]
        # The first clustering takes the features of all images, as an examination does: that is nearly all it takes.
        return Measurement(count, step_flops, step, end, end, checkpoint.seconds[0], checkpoint.file.stat().st_size)

    whole = steps == len(images) // batch_size
    count = len(images) if whole else steps * batch_size
    watch = _Stopwatch(steps, device, progress)
    checkpoint = _TimedCheckpoint(folder / "timed")
    train(*_some(images, labels, count), EPOCHS, checkpoint, watch)
    begun = [watch.began, *watch.ended[:-1]]
    stepping = [last - first for first, last in zip(begun, watch.stepped, strict=True)]
    ends = [
        end - last - saving for last, end, saving in zip(watch.stepped, watch.ended, checkpoint.seconds, strict=True)
    ]
    usual = statistics.median(stepping[1:])
    return Measurement(
        images=count,
        step_flops=step_flops,
        step=usual / steps,
        start=max(stepping[0] - usual, 0.0),
        end=statistics.median(ends[1:]),
        save=statistics.median(checkpoint.seconds[1:]),
        checkpoint=checkpoint.file.stat().st_size,
    )


def _some(
    images: NDArray[np.uint8], labels: NDArray[np.int64] | None, count: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Images evenly spread over the store, so that all classes are there; repeated if there are not enough."""
    if count == len(images):
        return images, labels
    chosen = np.arange(count) * len(images) // count
    return images[chosen], None if labels is None else labels[chosen]


class _TimedCheckpoint(Checkpoint):
    """A checkpoint that is saved after every epoch, and notes how many seconds that takes."""

    due = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seconds: list[float] = []

    def save(self, state: Mapping[str, Any]) -> None:
        started = time.perf_counter()
        super().save(state)
        self.seconds.append(time.perf_counter() - started)


class _Stopwatch:
    """A `Progress` that notes when training began, when every so-many-th step was done, and when every epoch was.

    Only for the steps that it notes it waits for the device: else a GPU would not run ahead as it does in training.
    The operations of the second step are counted, if there is a counter.
    """

    def __init__(
        self, steps: int, device: torch.device, shown: Progress, counter: FlopCounterMode | None = None
    ) -> None:
        self.steps, self.device, self.shown, self.counter = steps, device, shown, counter
        self.began = 0.0
        self.stepped: list[float] = []
        self.ended: list[float] = []

    @contextmanager
    def __call__(self, description: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Start a task, shown as what it is."""
        count = 0

        def advance(amount: int, note: str = "") -> None:
            nonlocal count
            report(amount)
            count += amount
            if amount == 0:
                self.ended.append(time.perf_counter())
            elif count % self.steps == 0:
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                self.stepped.append(time.perf_counter())
                if self.counter is not None and count == 1:
                    counting.enter_context(self.counter)
                elif count == 2:
                    counting.close()

        with self.shown(f"time {description}", total, done) as report, ExitStack() as counting:
            self.began = time.perf_counter()
            yield advance
