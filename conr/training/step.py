"""One training step: views → online and target networks → objective → update."""

from collections.abc import Hashable, Iterable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from conr.models.siamese import Siamese
from conr.models.world import World
from conr.training.compiling import Parts, compiled_parts
from conr.training.execution import Execution
from conr.training.objective import Objective
from conr.training.recipe import Recipe
from conr.training.streaming import ReadAhead
from conr.training.views import two_views


class TrainingStep:
    """A step that reads tensors only, and writes all that lasts in place, so that it can be recorded and replayed.

    Between two calls, `set` writes what differs from step to step into tensors that stay where they are; between two
    epochs, `start_epoch` does so. What Python decides within a step is its `key`: a record is valid for one key.

    Of several processes each puts its rows of the batch through the networks. The loss is that of the whole batch in
    each, from gathered outputs; its gradients are added up in one message. `DistributedDataParallel` would send them
    while others are computed, from hooks that a record of the step has to hold, too.

    Args:
        objective: the loss; its context has networks, images, device and observer.
        recipe: how to train.
        execution: how to execute it.

    Attributes:
        optimizer: of online network and predictor.
        learning_rates: of the last `set`: those of encoder and projector, and of the predictor.
        loss_sum: () float32, of the steps since `start_epoch`.
        generators: of the order of images and of views; of random numbers in the networks. Seeded anew every epoch.
    """

    def __init__(self, objective: Objective, recipe: Recipe, execution: Execution) -> None:
        context, size = objective.context, recipe.settings.batch_size
        self.objective, self.recipe = objective, recipe
        self.model, self.images, self.compute = context.model, context.images, context.compute
        self.observer = context.observer
        device = self.compute.device
        self.model.join_views(execution.one_forward)
        self.optimizer = _optimizer(self.model, recipe, execution)
        self.learning_rates = recipe.learning_rates(0)
        self.loss_sum = torch.zeros((), device=device)
        self.generators = [torch.Generator(device) for _ in range(2)]
        self._noise_std = 0.0
        self._view_size = recipe.view_size(0, self.images.shape[1:3])
        self._rates = [torch.zeros((), device=device) for _ in self.learning_rates]
        self._bind_rates()
        self._indices = torch.zeros(size, dtype=torch.int64, device=device)
        self._world = World.current()
        self._reader: ReadAhead | None = None
        if self.compute.streams(self.images):
            own = size // self._world.size
            self._reader = ReadAhead(self.images, own, device)
            self._pixels = torch.zeros(own, *self.images.shape[1:], dtype=torch.uint8, device=device)
        self._parts = Parts(two_views, self.model.networks)
        if execution.compiled and not self.observer.traces:
            pixels = torch.zeros(size, *self.images.shape[1:], dtype=torch.uint8, device=device)
            self._parts = compiled_parts(self.model, recipe, self.compute, self._world.rows(pixels))
        self._trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self._target_weight = torch.zeros((), dtype=self._trained[0].dtype, device=device)  # of the online network
        self._target = list(self.model.target.state_dict().values())

    @property
    def key(self) -> Hashable:
        """Whatever Python decides within a step."""
        return self._noise_std, self._view_size, self.objective.key

    def start_epoch(self, epoch: int) -> None:
        """Prepare for an epoch, counted from 0 within the stage, after the objective has."""
        for stream, generator in enumerate(self.generators):
            generator.manual_seed(self.recipe.epoch_seed(epoch, stream))
        self._noise_std = self.recipe.noise_at(epoch)
        self._view_size = self.recipe.view_size(epoch, self.images.shape[1:3])
        self.loss_sum.zero_()
        self.model.train()

    def with_pixels(self, batches: Tensor) -> Iterable[tuple[Tensor, Tensor | None]]:
        """The indices of each batch, and if the images are streamed those of this process's rows, in host memory.

        Args:
            batches: (steps, B) int64 positions in the store, on the device.
        """
        if self._reader is None:
            return zip(batches, repeat(None))
        # Once per epoch: a copy to the host in every step would make it wait for the GPU.
        stored = [self._world.rows(batch) for batch in batches.cpu()]
        return zip(batches, self._reader.batches(stored), strict=True)

    def set(self, indices: Tensor, pixels: Tensor | None, progress: float) -> None:
        """Say what the next call is about.

        Args:
            indices: (B,) int64 positions of the batch in the store, on the device.
            pixels: as of `with_pixels`.
            progress: epochs of the schedule so far, with a fraction.
        """
        self.observer.traced("batch", indices)
        self.learning_rates = self.recipe.learning_rates(progress)
        for tensor, rate in zip(self._rates, self.learning_rates, strict=True):
            tensor.fill_(rate)
        self.observer.traced("learning rates", self.learning_rates)
        self._target_weight.fill_(1 - self.recipe.target_momentum(progress))
        self._indices.copy_(indices)
        if pixels is not None:
            self._pixels.copy_(pixels, non_blocking=True)

    def __call__(self) -> None:
        """Make a step."""
        traced = self.observer.traced
        if self._reader is None and isinstance(self.images, Tensor):
            pixels = self.images[self._world.rows(self._indices)]
        else:
            pixels = self._pixels
        views, own = self.generators
        settings, crop_scale = self.recipe.views, self.recipe.settings.crop_scale
        first, second = self._parts.views(pixels, settings, crop_scale, views, self.observer, self._view_size)
        with self.compute.autocast():
            outputs = self.model(first, second, own, self._noise_std, self._parts.networks)
        traced("outputs", outputs)
        loss = self.objective.loss(outputs, self._indices)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._world.add_up([parameter.grad for parameter in self._trained if parameter.grad is not None])
        traced("gradient", self._trained)
        self.optimizer.step()
        traced("weights", self._trained)
        self.objective.after_update(outputs)
        self.model.update_target(self._target_weight)
        traced("target weights", self._target)
        self.loss_sum += loss.detach()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state of an interrupted run."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._bind_rates()
        self.objective.load_state(state["objective"])

    def _bind_rates(self) -> None:
        """Let the optimizer read the learning rates that `set` writes, also after it has loaded others."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate


def _optimizer(model: Siamese, recipe: Recipe, execution: Execution) -> torch.optim.SGD:
    groups = [{"params": list(part.parameters())} for part in (model.online, model.predictor)]
    settings, fused = recipe.optimizer, execution.fused_optimizer
    return torch.optim.SGD(
        groups, lr=0.0, momentum=settings.momentum, weight_decay=settings.weight_decay, foreach=not fused, fused=fused
    )
