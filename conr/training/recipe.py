"""One stage's share of a training run: settings, schedules and seeds, as numbers that depend on the epoch only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conr.parameters import Views
from conr.parameters.groups import Finetune, Optimizer, Pretrain
from conr.training.schedules import learning_rate, target_momentum, view_scale


@dataclass(frozen=True)
class Recipe:
    """One stage's share of the training run.

    Attributes:
        stage: its name, for messages.
        seed: seed of the order of images and of the views.
        settings: of the stage: epochs, batch size (an epoch's last partial batch is dropped), smallest crop, and factor
            on the schedule's learning rate for the predictor.
        optimizer: the schedule and SGD's settings.
        views: the ranges of the augmentation.
        first_epoch: where the stage starts on the schedule that both stages share.
        lr_scale: factor on the schedule's learning rate for encoder and projector.
        noise_std: standard deviation of the noise on online features before the predictor, after the warm-up.
    """

    stage: str
    seed: int
    settings: Pretrain | Finetune
    optimizer: Optimizer
    views: Views
    first_epoch: int = 0
    lr_scale: float = 1.0
    noise_std: float = 0.0

    def learning_rates(self, progress: float) -> tuple[float, float]:
        """Those of encoder and projector, and of the predictor, after `progress` epochs of the schedule."""
        settings = self.optimizer
        peak = settings.base_learning_rate * self.settings.batch_size / 256
        rate = learning_rate(progress, peak, settings.warmup_epochs, settings.schedule_epochs)
        return rate * self.lr_scale, rate * self.settings.predictor_lr_scale

    def target_momentum(self, progress: float) -> float:
        """Momentum of the target network after `progress` epochs of the schedule."""
        settings = self.optimizer
        if settings.target_schedule == "constant":
            return settings.target_momentum
        return target_momentum(progress, settings.target_momentum, settings.schedule_epochs)

    def noise_at(self, epoch: int) -> float:
        """Standard deviation of the noise in an epoch, counted from 0 within the stage."""
        return self.noise_std if self.first_epoch + epoch >= self.optimizer.warmup_epochs else 0.0

    def view_size(self, epoch: int, image: Sequence[int]) -> tuple[int, int]:
        """Height and width of views in an epoch, counted from 0 within the stage, from those of an image.

        They are whole pixels. Any number fits the networks: convolutions are padded, and the last map is averaged.
        """
        scale = view_scale(self.first_epoch + epoch, self.views.resolution, self.optimizer.schedule_epochs)
        height, width = (math.floor(scale * side + 0.5) for side in image)
        return height, width

    def view_sizes(self, image: Sequence[int]) -> list[tuple[int, int]]:
        """The different sizes of views in the stage, in the order of its epochs."""
        return list(dict.fromkeys(self.view_size(epoch, image) for epoch in range(self.settings.epochs)))

    def epoch_seed(self, epoch: int, stream: int = 0) -> int:
        """The seed of an epoch's random numbers: a function of seed, stage and epoch, and of nothing before it.

        Stream 0 is for the order of the images and their views, stream 1 for random numbers in the networks: switching
        the latter on must not change the former.
        """
        sequence = np.random.SeedSequence([self.seed, self.first_epoch + epoch, stream])
        return int(sequence.generate_state(1, np.uint64)[0]) & (2**63 - 1)
