"""Views and networks compiled by PyTorch, which fuses their operations: a GPU reads and writes less memory."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conr.errors import Note, one_line
from conr.models.siamese import Networks, Pair, Siamese
from conr.training.compute import Compute
from conr.training.recipe import Recipe
from conr.training.views import two_views

BACKEND = "inductor"  # of torch.compile


@dataclass(frozen=True)
class Parts:
    """What a step computes before its loss: as it is, or compiled.

    Attributes:
        views: `two_views`.
        networks: those of `Siamese.forward`.
    """

    views: Callable[..., Pair]
    networks: Networks


def compiled_parts(model: Siamese, recipe: Recipe, compute: Compute, pixels: Tensor) -> Parts:
    """Compiled views and networks, after a trial with views of each size that the training will have.

    Where that fails, a note says why, and they are not compiled.

    Networks and random numbers are the same afterwards.

    Args:
        model: the networks, on the device.
        recipe: how they will be trained.
        compute: device and number format.
        pixels: (B, H, W, 3) uint8, a batch of images on the device.
    """
    torch.compiler.reset()  # a function may be compiled a few times only; an earlier stage has compiled the same ones
    plain = model.networks
    parts = Parts(
        _compiled(two_views), Networks(_compiled(plain.online), _compiled(plain.predictor), _compiled(plain.target))
    )
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        for size in recipe.view_sizes(pixels.shape[1:3]):
            _try(parts, model, recipe, compute, pixels, size)
    except Exception as error:  # PyTorch's compilers raise errors of many classes
        message = f"views and networks cannot be compiled, so training takes longer: {one_line(error)}"
        warnings.warn(Note(message), stacklevel=2)
        return Parts(two_views, plain)
    finally:
        model.zero_grad(set_to_none=True)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return parts


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, backend=BACKEND, dynamic=False)


def _try(parts: Parts, model: Siamese, recipe: Recipe, compute: Compute, pixels: Tensor, size: tuple[int, int]) -> None:
    """Compute views, outputs and gradients: what is compiled is compiled on its first call with views of a size."""
    model.train()
    views, own = (torch.Generator(compute.device) for _ in range(2))
    first, second = parts.views(pixels, recipe.views, recipe.settings.crop_scale, views, size=size)
    with compute.autocast():
        outputs = model(first, second, own, networks=parts.networks)
    torch.cat((*outputs.projections, *outputs.predictions)).float().sum().backward()  # type: ignore[no-untyped-call]
