"""Levers of the training step, switched from outside around conr's own loop: conr has no switch for them."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from conr.models.batch_norm import group_batch_norm
from conr.models.siamese import Outputs, Siamese
from conr.observer import SILENT, Observer
from conr.parameters import Views
from conr.training import loop, views
from conr.training.compute import Compute


def beginning(change: Callable[[Siamese, int], None]) -> AbstractContextManager[Any]:
    """Change the model before conr's loop makes its optimizer."""
    make = loop._optimizer

    def optimizer(model: Siamese, recipe: loop.Recipe) -> torch.optim.SGD:
        change(model, recipe.settings.batch_size)
        return make(model, recipe)

    return mock.patch.object(loop, "_optimizer", optimizer)


def channels_first(model: Siamese, batch: int) -> None:
    """Convolutions in PyTorch's own order of axes."""
    model.to(memory_format=torch.contiguous_format)

    def forward(network: Any, images: Tensor) -> Tensor:
        return network.projector(network.encoder(((images - network.mean) / network.std).contiguous()))

    for network in (model.online, model.target):
        network.forward = partial(forward, network)


def one_forward(model: Siamese, batch: int) -> None:
    """Both views as one batch; batch-norm statistics stay those of each view."""
    group_batch_norm(model, batch)

    def forward(first: Tensor, second: Tensor, generator: torch.Generator, noise_std: float = 0.0) -> Outputs:
        both = torch.cat((first, second))
        projections = model.online(both)
        halves = (projections, model.predictor(projections), model.project(both))
        return Outputs(*(tuple(tensor.chunk(2)) for tensor in halves))

    model.forward = forward


def compiled(backend: str, model: Siamese, batch: int, **options: Any) -> None:
    """The networks compiled, each on its own."""
    torch.compiler.reset()
    for module in (model.online, model.target, model.predictor):
        module.compile(backend=backend, dynamic=False, **options)


def graphed(backend: str, model: Siamese, batch: int) -> None:
    """The networks compiled into CUDA graphs."""
    compiled(backend, model, batch, **({"mode": "reduce-overhead"} if backend == "inductor" else {}))
    forward = model.forward

    def step(*arguments: Any, **named: Any) -> Outputs:
        torch.compiler.cudagraph_mark_step_begin()
        return forward(*arguments, **named)

    model.forward = step


def uncounted(model: Siamese, batch: int) -> None:
    """Batch norm without its counter of batches, which a fixed momentum does not need: 86 kernels a step."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.num_batches_tracked = None


def fused_sgd() -> AbstractContextManager[Any]:
    """SGD in one kernel for all tensors."""
    make = torch.optim.SGD
    return mock.patch.object(
        torch.optim, "SGD", lambda groups, **settings: make(groups, **{**settings, "foreach": False, "fused": True})
    )


@contextmanager
def tf32_products() -> Iterator[None]:
    """Matrix products of float32 in TF32, as cuDNN's convolutions are already."""
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def joined_views(
    images: Tensor, ranges: Views, crop_scale: float, generator: torch.Generator, observer: Observer = SILENT
) -> tuple[Tensor, Tensor]:
    """The same views by half as many kernels; on a CPU, whose caches the batches leave, 1.1 to 1.6 times as slow."""
    batch, height, width, _ = images.shape
    pair = [views.draw(batch, height, width, ranges, crop_scale, generator) for _ in range(2)]
    drawn = [[getattr(one, field.name) for one in pair] for field in dataclasses.fields(views.ViewParameters)]
    both = views.ViewParameters(*(None if first is None else torch.cat((first, second)) for first, second in drawn))
    first, second = views.apply(views.to_pixels(images).repeat(2, 1, 1, 1), both).chunk(2)
    return first, second


Lever = Callable[[], AbstractContextManager[Any]]


def levers(backend: str) -> dict[str, Lever]:
    """What to switch, with a backend of torch.compile. All else is as conr has it."""
    return {
        "nothing (the noise)": nullcontext,
        "channels first": partial(beginning, channels_first),
        "float32 (TF32 in convolutions)": lambda: mock.patch.object(Compute, "autocast", nullcontext),
        "compiled networks": partial(beginning, partial(compiled, backend)),
        "compiled networks, CUDA graphs": partial(beginning, partial(graphed, backend)),
        "fused SGD": fused_sgd,
        "both views in one forward": partial(beginning, one_forward),
        "batch norm without its counter": partial(beginning, uncounted),
        "both views by the same kernels": lambda: mock.patch.object(loop, "two_views", joined_views),
        "cudnn.benchmark": lambda: torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True),
        "TF32 products": tf32_products,
        "images on the host": lambda: mock.patch.object(Compute, "load_images", staticmethod(torch.from_numpy)),
    }
