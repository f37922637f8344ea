"""What a few epochs say about a whole training, with a clock and a training of which everything is known."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from conr.progress import Progress, silent
from conr.training import estimate
from conr.training.checkpoints import SAVING, Checkpoint
from conr.training.estimate import Cost, Measurement, measure

BATCH, CLASSES, INPUTS, OUTPUTS = 100, 10, 3, 5
CPU = torch.device("cpu")


class Pretended:
    """A training of known cost, on a clock of its own: seconds a step, an image (first, and examined), a saving."""

    def __init__(self, step: float, start: float, end: float, save: float) -> None:
        self.step, self.start, self.end, self.save = step, start, end, save
        self.now = 0.0
        self.seen: list[set[int]] = []

    def __call__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        epochs: int,
        checkpoint: Checkpoint,
        progress: Progress,
    ) -> None:
        assert labels is not None
        self.seen.append(set(labels.tolist()))
        weights = torch.ones(INPUTS, OUTPUTS, requires_grad=True)
        with progress("pretend", epochs * (len(images) // BATCH)) as advance:
            self.now += self.start * len(images)
            for _ in range(epochs):
                for _ in range(len(images) // BATCH):
                    (torch.ones(BATCH, INPUTS) @ weights).sum().backward()
                    self.now += self.step
                    advance(1)
                self.now += self.end * len(images)
                checkpoint.save({"weights": torch.zeros(1000)})
                advance(0, note="done")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the module's clock be that of a pretended training, and saving take the time that it says."""

    def install(training: Pretended) -> None:
        saved = Checkpoint.save

        def save(self: Checkpoint, state: Mapping[str, Any]) -> None:
            saved(self, state)
            training.now += training.save

        monkeypatch.setattr(Checkpoint, "save", save)
        monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: training.now))

    return install


@pytest.mark.parametrize(
    ("count", "step", "fewest", "timed"),
    [
        (1_050, 0.05, 10, 1_050),  # ten steps of the forty that two seconds hold: the whole epoch, and all images
        (100_000, 0.049, 10, 4_000),
        (100_000, 3.0, 10, 100),  # slower than the budget: one step an epoch
        (100_000, 0.1, 2_950, 3_000),  # k-means needs that many
        (100_000, 6.0, 10, 300),  # four such steps would try the patience: the warm-up must do
        (250, 0.05, 10, 250),
    ],
)
def test_a_few_epochs_foretell_the_whole_training(
    count: int, step: float, fewest: int, timed: int, clock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Pretended(step=step, start=2e-4, end=2e-4, save=0.3)
    clock(training)
    images = np.zeros((count, 4, 4, 3), np.uint8)
    labels = np.sort(np.arange(count) % CLASSES)
    measured = measure(training, images, labels, BATCH, fewest, CPU, tmp_path, silent)
    assert measured.images == timed
    assert (measured.step, measured.save) == (pytest.approx(step), pytest.approx(0.3))
    assert (measured.start, measured.end) == (pytest.approx(2e-4 * timed), pytest.approx(2e-4 * timed))
    assert all(seen == set(range(CLASSES)) for seen in training.seen), "a sorted store is sampled all over"

    monkeypatch.setattr(estimate, "SAVING", math.inf)  # as the pretended training saves after every epoch
    cost = Cost(measured, count, BATCH, epochs=7, ends=7)
    begun = training.now
    training(images, labels, 7, Checkpoint(tmp_path / "real"), silent)
    assert cost.seconds == pytest.approx(training.now - begun)


def test_the_first_clustering_is_told_apart_from_the_examinations(clock: Any, tmp_path: Path) -> None:
    training = Pretended(step=0.049, start=5e-3, end=1e-4, save=0.1)
    clock(training)
    images, labels = np.zeros((10_000, 2, 2, 3), np.uint8), np.arange(10_000) % CLASSES
    measured = measure(training, images, labels, BATCH, 2, CPU, tmp_path, silent)
    assert (measured.start, measured.end) == (pytest.approx(5e-3 * 4_000), pytest.approx(1e-4 * 4_000))


def test_a_multiply_add_counts_as_two_operations_forth_and_back(clock: Any, tmp_path: Path) -> None:
    training = Pretended(step=0.05, start=0.0, end=0.0, save=0.0)
    clock(training)
    measured = measure(
        training, np.zeros((500, 2, 2, 3), np.uint8), np.arange(500) % 10, BATCH, 2, CPU, tmp_path, silent
    )
    product = 2 * BATCH * INPUTS * OUTPUTS
    assert measured.step_flops == 2 * product  # the output, and the gradient of the weights; the input has none
    assert measured.checkpoint > 4 * 1000


@pytest.mark.parametrize(("save", "share"), [(0.1, 0.1), (7.0, SAVING * 6.05)])
def test_the_sums_of_a_cost(save: float, share: float) -> None:
    measured = Measurement(images=500, step_flops=3_000, step=0.5, start=4.0, end=1.0, save=save, checkpoint=1_000)
    cost = Cost(measured, images=1_050, batch_size=100, epochs=40, ends=20, runs=3, start_up=6.0)
    assert cost.steps == 10
    assert cost.epoch_flops == 30_000
    assert cost.rate == 6_000
    assert cost.epoch_seconds == pytest.approx(10 * 0.5 + 2.1 * 1.0 / 2 + share)
    assert cost.seconds == pytest.approx(6.0 + 3 * (2.1 * 4.0 + 40 * (5.0 + 1.05 + share)))
