"""The training loop of both stages: epochs, log and checkpoints.

What differs between instance and group concordance is the `Objective`.
"""

import math
import time

import torch
from torch import Tensor

from conr.data.images import ShardedImages
from conr.errors import UserError
from conr.models.batch_norm import synchronize_batch_norm
from conr.models.world import World
from conr.training.checkpoints import Checkpoint
from conr.training.execution import Execution
from conr.training.log import Row
from conr.training.objective import Objective
from conr.training.recipe import Recipe
from conr.training.recording import CudaRecorder, RecordedStep
from conr.training.step import TrainingStep
from conr.training.streaming import shuffled


def train(objective: Objective, recipe: Recipe, checkpoint: Checkpoint, execution: Execution) -> list[Row]:
    """Train a model in place, from its last checkpoint if there is one, and save one after epochs when it is due.

    Every epoch's randomness depends on (seed, stage, epoch) only, so a resumed run equals an uninterrupted one.

    Of several processes (`World`) all call this with the same arguments. They train as one does, up to rounding; the
    main one reads and saves the state.

    Args:
        objective: the loss and what happens between epochs; its context has networks, images, device and observer.
        recipe: how to train.
        checkpoint: where the state of the run is kept.
        execution: how to execute a step.

    Returns:
        The log, one row per epoch. There are fewer than the recipe's where the objective has ended the training.

    Raises:
        UserError: the loss or the features are not finite; the last good state stays in the checkpoint.
    """
    context, settings = objective.context, recipe.settings
    images, observer, world = context.images, context.observer, World.current()
    if world.size > 1:
        synchronize_batch_norm(context.model, context.compute.device)
        for tensor in context.model.state_dict().values():
            world.broadcast(tensor)
    step = TrainingStep(objective, recipe, execution)
    history = _resume(checkpoint, step, world)
    make_step = RecordedStep(step, CudaRecorder()) if execution.graph and not observer.traces else step
    steps = len(images) // settings.batch_size
    with observer.task(recipe.stage, settings.epochs * steps, done=len(history) * steps):
        while not _is_over(history, objective, settings.epochs):
            epoch, started = len(history), time.perf_counter()
            objective.start_epoch(epoch)
            step.start_epoch(epoch)
            batches = _batches(images, settings.batch_size, step.generators[0])
            for number, (indices, pixels) in enumerate(step.with_pixels(batches)):
                step.set(indices, pixels, recipe.first_epoch + epoch + number / steps)
                make_step()
                observer.step_done()

            mean_loss = step.loss_sum.item() / steps
            if not math.isfinite(mean_loss):
                raise UserError(_diverged(recipe, epoch))
            row: Row = {"epoch": recipe.first_epoch + epoch + 1, "loss": mean_loss}
            row["learning_rate"] = step.learning_rates[0]
            row |= objective.end_epoch(epoch, steps)
            row["seconds"] = round(time.perf_counter() - started, 3)
            history.append(row)
            if world.is_main and (checkpoint.due or _is_over(history, objective, settings.epochs)):
                checkpoint.save({**step.state(), "history": history})
            observer.epoch_done(row)
    return history


def _is_over(history: list[Row], objective: Objective, epochs: int) -> bool:
    return len(history) >= epochs or objective.may_end(history)


def _resume(checkpoint: Checkpoint, step: TrainingStep, world: World) -> list[Row]:
    """Restore the last saved state, if any; returns the log so far."""
    state = world.share(checkpoint.load() if world.is_main else None)
    if state is None:
        return []
    step.load_state(state)
    history: list[Row] = state["history"]
    return history


def _batches(images: Tensor | ShardedImages, batch_size: int, generator: torch.Generator) -> Tensor:
    """The indices of an epoch's whole batches, (steps, B) int64 on the generator's device."""
    steps = len(images) // batch_size
    return shuffled(images, generator)[: steps * batch_size].view(steps, batch_size)


def _diverged(recipe: Recipe, epoch: int) -> str:
    return (
        f"{recipe.stage}: the loss is not a finite number in epoch {epoch + 1} of {recipe.settings.epochs}. Lower "
        "optimizer.base_learning_rate, or set precision to float32, and run the same command again; with changed "
        "values training starts from the beginning"
    )
