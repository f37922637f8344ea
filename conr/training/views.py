"""Two-view augmentation: batched, on the training device, with parameters of its own for every sample.

Crop, flip, rotation and resizing are one bilinear resampling; brightness, contrast, saturation, hue and grayscale
follow torchvision's functional operations, always in this order. The random parameters
(`ViewParameters`) are separate from their use (`apply`), so that tests compare the operations with torchvision's.
"""

import math
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from conr.models.siamese import to_pixels
from conr.models.world import World
from conr.observer import SILENT, Observer
from conr.parameters import Views

CROP_RATIO = (3 / 4, 4 / 3)  # width to height, as torchvision's RandomResizedCrop
CROP_ATTEMPTS = 10  # likewise
LUMA = (0.2989, 0.587, 0.114)  # as torchvision's rgb_to_grayscale


@dataclass(frozen=True)
class ViewParameters:
    """The parameters of one view, one row per sample.

    Attributes:
        crop: (B, 4) top, left, height, width in pixels; fractions allowed.
        flipped: (B,) bool, horizontal flip after the crop.
        angle: (B,) rotation in degrees, counter-clockwise, about the image's center, before the crop.
        brightness, contrast, saturation: (B,) factors, 1 for no change; None skips the operation.
        hue: (B,) shift in [−0.5, 0.5], 0 for no change; None skips the operation.
        grayscale: (B,) bool; None skips the operation.
    """

    crop: Tensor
    flipped: Tensor
    angle: Tensor
    brightness: Tensor | None = None
    contrast: Tensor | None = None
    saturation: Tensor | None = None
    hue: Tensor | None = None
    grayscale: Tensor | None = None

    def rows(self, world: World) -> "ViewParameters":
        """This process's, of those of the whole batch."""
        drawn = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: world.rows(values) for name, values in drawn.items() if values is not None})


def two_views(
    images: Tensor, views: Views, crop_scale: float, generator: torch.Generator, observer: Observer = SILENT
) -> tuple[Tensor, Tensor]:
    """Two independent random views of a batch.

    Of several processes each has its rows of the batch. The parameters are drawn for the whole batch, so that they do
    not depend on the number of processes.

    Args:
        images: (B, H, W, 3) uint8, on the device of the generator.
        views: the ranges of the parameters.
        crop_scale: the smallest share of an image's area that a crop covers.
        generator: the source of randomness.
        observer: notified of the parameters, and of both views.

    Returns:
        Two (B, 3, H, W) float32 tensors with values in [0, 1].
    """
    pixels, world = to_pixels(images), World.current()
    batch, height, width, _ = images.shape
    pair = []
    for name in ("view 1", "view 2"):
        drawn = draw(batch * world.size, height, width, views, crop_scale, generator).rows(world)
        observer.traced(name, drawn)
        pair.append(apply(pixels, drawn))
    observer.traced("pixels", pair)
    return pair[0], pair[1]


def draw(
    batch: int, height: int, width: int, views: Views, crop_scale: float, generator: torch.Generator
) -> ViewParameters:
    """Sample the parameters of one view for a batch of images of the given size in pixels.

    Those of operations that are switched off are sampled, too: a switch must not change any other random number.
    """
    uniform = partial(_uniform, generator, (batch,))
    jittered = uniform() < views.jitter

    def jitter(strength: float, neutral: float = 1.0, lowest: float = 0.0) -> Tensor | None:
        drawn = uniform(max(lowest, neutral - strength), neutral + strength)
        return torch.where(jittered, drawn, neutral) if strength > 0 and views.jitter > 0 else None

    drawn = ViewParameters(
        crop=_draw_crops(batch, height, width, crop_scale, generator),
        flipped=uniform() < views.flip,
        angle=uniform(-views.rotation, views.rotation),
        brightness=jitter(views.brightness),
        contrast=jitter(views.contrast),
        saturation=jitter(views.saturation),
        hue=jitter(views.hue, neutral=0.0, lowest=-0.5),
        grayscale=uniform() < views.grayscale,
    )
    return drawn if views.grayscale > 0 else replace(drawn, grayscale=None)


def apply(pixels: Tensor, parameters: ViewParameters) -> Tensor:
    """One view of every image.

    Args:
        pixels: (B, 3, H, W) float32 in [0, 1].
        parameters: a row for each image.

    Returns:
        (B, 3, H, W) float32 in [0, 1].
    """
    view = resample(pixels, parameters.crop, parameters.flipped, parameters.angle)
    if parameters.brightness is not None:
        view = _blend(view, torch.zeros((), device=view.device), parameters.brightness)
    if parameters.contrast is not None:
        view = _blend(view, _luma(view).mean(dim=(1, 2, 3), keepdim=True), parameters.contrast)
    if parameters.saturation is not None:
        view = _blend(view, _luma(view), parameters.saturation)
    if parameters.hue is not None:
        view = shift_hue(view, parameters.hue)
    if parameters.grayscale is not None:
        view = torch.where(parameters.grayscale.view(-1, 1, 1, 1), _luma(view), view)
    return view


def resample(pixels: Tensor, crop: Tensor, flipped: Tensor, angle: Tensor) -> Tensor:
    """Rotate, crop, resize to the original size and flip, in one bilinear resampling.

    Equal to torchvision's `rotate` (bilinear, black outside), `resized_crop` and `hflip` wherever one of rotation and
    crop is the identity; where both act, one resampling loses less than torchvision's two.

    Args:
        pixels: (B, C, H, W).
        crop: (B, 4) top, left, height, width in pixels.
        flipped: (B,) bool.
        angle: (B,) degrees, counter-clockwise.

    Returns:
        (B, C, H, W).
    """
    height, width = pixels.shape[-2:]
    top, left, crop_height, crop_width = (column.unsqueeze(1) for column in crop.unbind(1))
    rows = (torch.arange(height, device=pixels.device) + 0.5) / height
    columns = (torch.arange(width, device=pixels.device) + 0.5) / width
    columns = torch.where(flipped.unsqueeze(1), 1 - columns, columns)
    # Pixel coordinates in the rotated image. Clamping keeps the crop's border from mixing with what lies outside.
    y = (top + rows * crop_height - 0.5).clamp(top, top + crop_height - 1) - (height - 1) / 2
    x = (left + columns * crop_width - 0.5).clamp(left, left + crop_width - 1) - (width - 1) / 2
    cosine, sine = torch.cos(angle * math.pi / 180), torch.sin(angle * math.pi / 180)
    cosine, sine = cosine.view(-1, 1, 1), sine.view(-1, 1, 1)
    y, x = y.unsqueeze(2), x.unsqueeze(1)
    grid = torch.stack(((cosine * x - sine * y) * (2 / width), (sine * x + cosine * y) * (2 / height)), dim=3)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def shift_hue(pixels: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of every image by its shift, a share of the color circle, as torchvision's `adjust_hue`.

    Written without the six-way choice of an HSV round trip: with n = (offset + 6 · hue) mod 6, a channel is
    value − chroma · clamp(min(n, 4 − n), 0, 1), with offset 5, 3, 1 for red, green, blue.

    Args:
        pixels: (B, 3, H, W) in [0, 1].
        shift: (B,) in [−0.5, 0.5].

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    red, green, blue = pixels.unbind(1)
    value = pixels.amax(1)
    chroma = value - pixels.amin(1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sector = (sector + 6 * shift.view(-1, 1, 1)).unsqueeze(1)
    offsets = torch.arange(5, 0, -2, device=pixels.device).view(1, 3, 1, 1)
    n = torch.remainder(sector + offsets, 6)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(n, 4 - n).clamp(0, 1)


def _draw_crops(batch: int, height: int, width: int, crop_scale: float, generator: torch.Generator) -> Tensor:
    """(B, 4) crops, sampled as torchvision's RandomResizedCrop but not rounded to whole pixels.

    Of ten tries the first that fits counts; the whole image if none does.
    """
    uniform = partial(_uniform, generator, (batch, CROP_ATTEMPTS))
    area = uniform(crop_scale, 1.0) * (height * width)
    ratio = torch.exp(uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
    heights, widths = (area / ratio).sqrt(), (area * ratio).sqrt()
    fits = (heights <= height) & (widths <= width)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found = fits.gather(1, first)
    crop_height = torch.where(found, heights.gather(1, first), float(height))
    crop_width = torch.where(found, widths.gather(1, first), float(width))
    offsets = _uniform(generator, (batch, 2))
    top = offsets[:, :1] * (height - crop_height)
    left = offsets[:, 1:] * (width - crop_width)
    return torch.cat((top, left, crop_height, crop_width), dim=1)


def _uniform(generator: torch.Generator, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
    drawn = torch.rand(shape, device=generator.device, generator=generator)
    return drawn if (low, high) == (0.0, 1.0) else drawn * (high - low) + low


def _blend(view: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor · view + (1 − factor) · other, clamped: torchvision's brightness, contrast and saturation."""
    return torch.lerp(other.expand_as(view), view, factor.view(-1, 1, 1, 1)).clamp(0, 1)


def _luma(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)
