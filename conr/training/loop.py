"""The training loop of both stages: views → online and target networks → objective → update.

What differs between instance and group concordance is the `Objective`.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conr.errors import UserError
from conr.models.siamese import Siamese
from conr.observer import Observer
from conr.parameters.groups import Finetune, Optimizer, Pretrain, Views
from conr.training.checkpoints import Checkpoint
from conr.training.log import Row
from conr.training.objective import Objective
from conr.training.schedules import learning_rate, target_momentum
from conr.training.views import two_views


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


def train(objective: Objective, recipe: Recipe, checkpoint: Checkpoint) -> list[Row]:
    """Train a model in place, from its last checkpoint if there is one, and save one after epochs when it is due.

    Every epoch's randomness depends on (seed, stage, epoch) only, so a resumed run equals an uninterrupted one.

    Args:
        objective: the loss and what happens between epochs; its context has networks, images, device and observer.
        recipe: how to train.
        checkpoint: where the state of the run is kept.

    Returns:
        The log, one row per epoch.

    Raises:
        UserError: the loss or the features are not finite; the last good state stays in the checkpoint.
    """
    context, settings = objective.context, recipe.settings
    model, images, compute, observer = context.model, context.images, context.compute, context.observer
    optimizer = _optimizer(model, recipe)
    history = _resume(checkpoint, optimizer, objective)
    steps = len(images) // settings.batch_size
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    target = list(model.target.state_dict().values())
    with observer.task(recipe.stage, settings.epochs * steps, done=len(history) * steps):
        for epoch in range(len(history), settings.epochs):
            started = time.perf_counter()
            objective.start_epoch(epoch)
            model.train()
            generator, own_generator = (epoch_generator(recipe, epoch, compute.device, stream) for stream in (0, 1))
            noise_std = recipe.noise_std if recipe.first_epoch + epoch >= recipe.optimizer.warmup_epochs else 0.0
            total = torch.zeros((), device=compute.device)
            for step, (indices, stored) in enumerate(_batches(images, settings.batch_size, generator)):
                observer.traced("batch", indices)
                progress = recipe.first_epoch + epoch + step / steps
                _set_learning_rates(optimizer, recipe, progress, observer)
                pixels = compute.batch(images, stored)
                first, second = two_views(pixels, recipe.views, settings.crop_scale, generator, observer)
                with compute.autocast():
                    outputs = model(first, second, own_generator, noise_std)
                observer.traced("outputs", outputs)
                loss = objective.loss(outputs, indices)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                observer.traced("gradient", trained)
                optimizer.step()
                observer.traced("weights", trained)
                model.update_target(_target_momentum(recipe, progress))
                observer.traced("target weights", target)
                total += loss.detach()
                observer.step_done()

            mean_loss = total.item() / steps
            if not math.isfinite(mean_loss):
                raise UserError(_diverged(recipe, epoch))
            row: Row = {"epoch": recipe.first_epoch + epoch + 1, "loss": mean_loss}
            row["learning_rate"] = optimizer.param_groups[0]["lr"]
            row |= objective.end_epoch(epoch)
            row["seconds"] = round(time.perf_counter() - started, 3)
            history.append(row)
            if checkpoint.due or len(history) == settings.epochs:
                _save(checkpoint, optimizer, objective, history)
            observer.epoch_done(row)
    return history


def epoch_generator(recipe: Recipe, epoch: int, device: torch.device, stream: int = 0) -> torch.Generator:
    """The randomness of one epoch: a function of seed, stage and epoch, and of nothing before it.

    Stream 0 is for the order of the images and their views, stream 1 for random numbers in the networks: switching
    the latter on must not change the former.
    """
    sequence = np.random.SeedSequence([recipe.seed, recipe.first_epoch + epoch, stream])
    seed = sequence.generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed) & (2**63 - 1))


def _save(checkpoint: Checkpoint, optimizer: torch.optim.SGD, objective: Objective, history: list[Row]) -> None:
    model = objective.context.model.state_dict()
    state = {"model": model, "optimizer": optimizer.state_dict(), "objective": objective.state()}
    checkpoint.save({**state, "history": history})


def _resume(checkpoint: Checkpoint, optimizer: torch.optim.SGD, objective: Objective) -> list[Row]:
    """Restore what `_save` saved, if anything; returns the log so far."""
    state = checkpoint.load()
    if state is None:
        return []
    objective.context.model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    objective.load_state(state["objective"])
    history: list[Row] = state["history"]
    return history


def _batches(images: Tensor, batch_size: int, generator: torch.Generator) -> Iterable[tuple[Tensor, Tensor]]:
    """The indices of an epoch's whole batches, on the generator's device and where the images are.

    Both are made once per epoch: a copy to the host in every step would make it wait for the GPU.
    """
    order = torch.randperm(len(images), device=generator.device, generator=generator)
    order = order[: len(images) // batch_size * batch_size]
    return zip(torch.split(order, batch_size), torch.split(order.to(images.device), batch_size), strict=True)


def _optimizer(model: Siamese, recipe: Recipe) -> torch.optim.SGD:
    groups: list[dict[str, Any]] = [
        {"params": list(model.online.parameters()), "lr_scale": recipe.lr_scale},
        {"params": list(model.predictor.parameters()), "lr_scale": recipe.settings.predictor_lr_scale},
    ]
    settings = recipe.optimizer
    return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, weight_decay=settings.weight_decay, foreach=True)


def _set_learning_rates(optimizer: torch.optim.SGD, recipe: Recipe, progress: float, observer: Observer) -> None:
    """Set the learning rates of the schedule after `progress` epochs."""
    settings = recipe.optimizer
    peak = settings.base_learning_rate * recipe.settings.batch_size / 256
    rate = learning_rate(progress, peak, settings.warmup_epochs, settings.schedule_epochs)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    observer.traced("learning rates", [group["lr"] for group in optimizer.param_groups])


def _target_momentum(recipe: Recipe, progress: float) -> float:
    settings = recipe.optimizer
    if settings.target_schedule == "constant":
        return settings.target_momentum
    return target_momentum(progress, settings.target_momentum, settings.schedule_epochs)


def _diverged(recipe: Recipe, epoch: int) -> str:
    return (
        f"{recipe.stage}: the loss is not a finite number in epoch {epoch + 1} of {recipe.settings.epochs}. Lower "
        "optimizer.base_learning_rate, or set precision to float32, and run the same command again; with changed "
        "values training starts from the beginning"
    )
