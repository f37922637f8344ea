"""The training loop of both stages: views → online and target networks → objective → update.

It reads top to bottom. What differs between instance and group concordance is the `Objective` it is given.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from conr.errors import UserError
from conr.networks import Outputs, Siamese
from conr.parameters import Optimiser, Views
from conr.progress import Progress
from conr.training.checkpoints import Checkpoint
from conr.training.compute import Compute
from conr.training.log import Row
from conr.training.schedules import learning_rate, target_momentum
from conr.views import two_views


class Objective(Protocol):
    """What a stage adds to the loop."""

    def start_epoch(self, epoch: int) -> None:
        """Prepare for an epoch, counted from 0 within the stage."""

    def loss(self, outputs: Outputs, indices: Tensor) -> Tensor:
        """The scalar to minimise.

        Args:
            outputs: features, predictions and targets of both views.
            indices: (B,) int64 positions of the samples in the store.
        """

    def end_epoch(self, epoch: int) -> Row:
        """Finish an epoch (after the last one, too) and return what to log."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the tensors of an interrupted run."""


@dataclass(frozen=True)
class Recipe:
    """One stage's share of the training run.

    Attributes:
        stage: its name, for messages.
        seed: seed of the order of images and of the views.
        epochs: epochs of this stage.
        first_epoch: where the stage starts on the schedule that both stages share.
        batch_size: images per step; the last partial batch of an epoch is dropped.
        crop_scale: smallest share of an image that a crop covers.
        rate: learning rate of encoder and projector, times the schedule's.
        predictor_rate: that of the predictor, likewise.
        optimiser: the schedule and SGD's settings.
        views: the ranges of the augmentation.
        noise: standard deviation of the noise on online features before the predictor, after the warm-up.
    """

    stage: str
    seed: int
    epochs: int
    first_epoch: int
    batch_size: int
    crop_scale: float
    rate: float
    predictor_rate: float
    optimiser: Optimiser
    views: Views
    noise: float = 0.0


def train(
    model: Siamese,
    images: Tensor,
    objective: Objective,
    recipe: Recipe,
    compute: Compute,
    checkpoint: Checkpoint,
    progress: Progress,
) -> list[Row]:
    """Train a model in place, from its last checkpoint if there is one, and save one after epochs when it is due.

    Every epoch's randomness comes from (seed, stage, epoch) alone, so a resumed run equals an uninterrupted one.

    Args:
        model: online and target networks, on the device.
        images: (N, H, W, 3) uint8, where `compute.place` put them.
        objective: the loss and what happens between epochs.
        recipe: how to train.
        compute: device and number format.
        checkpoint: where the state of the run is kept.
        progress: told of every step.

    Returns:
        The log, a row an epoch.

    Raises:
        UserError: the loss or the features are not finite; the last good state stays in the checkpoint.
    """
    optimiser = _optimiser(model, recipe)
    history: list[Row] = []
    state = checkpoint.load()
    if state is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        objective.load_state(state["objective"])
        history = state["history"]

    steps = len(images) // recipe.batch_size
    with progress(recipe.stage, recipe.epochs * steps, done=len(history) * steps) as advance:
        for epoch in range(len(history), recipe.epochs):
            started = time.perf_counter()
            objective.start_epoch(epoch)
            model.train()
            generator, own_generator = (epoch_generator(recipe, epoch, compute.device, stream) for stream in (0, 1))
            noise = recipe.noise if recipe.first_epoch + epoch >= recipe.optimiser.warmup_epochs else 0.0
            total = torch.zeros((), device=compute.device)
            for step, (indices, places) in enumerate(_batches(images, recipe.batch_size, generator)):
                moment = recipe.first_epoch + epoch + step / steps
                _set_rates(optimiser, recipe, moment)
                first, second = two_views(compute.batch(images, places), recipe.views, recipe.crop_scale, generator)
                with compute.autocast():
                    outputs = model(first, second, own_generator, noise)
                loss = objective.loss(outputs, indices)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                model.update_target(_target_momentum(recipe, moment))
                total += loss.detach()
                advance(1)

            mean_loss = total.item() / steps
            if not math.isfinite(mean_loss):
                raise UserError(_diverged(recipe, epoch))
            row: Row = {"epoch": recipe.first_epoch + epoch + 1, "loss": mean_loss}
            row["learning_rate"] = optimiser.param_groups[0]["lr"]
            row |= objective.end_epoch(epoch)
            row["seconds"] = round(time.perf_counter() - started, 3)
            history.append(row)
            if checkpoint.due or len(history) == recipe.epochs:
                checkpoint.save(
                    {
                        "model": model.state_dict(),
                        "optimiser": optimiser.state_dict(),
                        "objective": objective.state(),
                        "history": history,
                    }
                )
            advance(0, note=f"loss {mean_loss:.3f}")
    return history


def epoch_generator(recipe: Recipe, epoch: int, device: torch.device, stream: int = 0) -> torch.Generator:
    """The randomness of one epoch: a function of seed, stage and epoch, and of nothing that went before.

    Stream 0 is for the order of the images and their views, stream 1 for what the networks draw: switching the latter
    on must not change the former.
    """
    sequence = np.random.SeedSequence([recipe.seed, recipe.first_epoch + epoch, stream])
    seed = sequence.generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed) & (2**63 - 1))


def _batches(images: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """The indices of an epoch's batches, on the generator's device and where the images are.

    Both are made once an epoch: a copy to the host in every step would make it wait for the GPU.
    """
    order = torch.randperm(len(images), device=generator.device, generator=generator)
    places = order.to(images.device)
    for first in range(0, len(images) - batch_size + 1, batch_size):
        batch = slice(first, first + batch_size)
        yield order[batch], places[batch]


def _optimiser(model: Siamese, recipe: Recipe) -> torch.optim.SGD:
    groups: list[dict[str, Any]] = [
        {"params": list(model.online.parameters()), "factor": recipe.rate},
        {"params": list(model.predictor.parameters()), "factor": recipe.predictor_rate},
    ]
    settings = recipe.optimiser
    return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, weight_decay=settings.weight_decay, foreach=True)


def _set_rates(optimiser: torch.optim.SGD, recipe: Recipe, moment: float) -> None:
    settings = recipe.optimiser
    peak = settings.base_learning_rate * recipe.batch_size / 256
    rate = learning_rate(moment, peak, settings.warmup_epochs, settings.schedule_epochs)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]


def _target_momentum(recipe: Recipe, moment: float) -> float:
    settings = recipe.optimiser
    if settings.target_schedule == "constant":
        return settings.target_momentum
    return target_momentum(moment, settings.target_momentum, settings.schedule_epochs)


def _diverged(recipe: Recipe, epoch: int) -> str:
    return (
        f"{recipe.stage}: the loss is not a finite number in epoch {epoch + 1} of {recipe.epochs}. Lower "
        "optimiser.base_learning_rate, or set precision to float32, and run the same command again; with changed "
        "values training starts anew"
    )
