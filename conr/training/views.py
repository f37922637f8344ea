"""Two-view augmentation: batched, on the training device, with parameters of its own for every sample.

Crop, flip, rotation and resizing are one bilinear resampling; brightness, contrast, saturation, hue and grayscale
follow torchvision's functional operations, always in this order. The random parameters
(`ViewParameters`) are separate from their use (`apply`), so that tests compare the operations with torchvision's.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from conr.models.siamese import to_pixels
from conr.models.world import World
from conr.observer import SILENT, Observer
from conr.parameters import Views

CROP_RATIO = (3 / 4, 4 / 3)  # width to height, as torchvision's RandomResizedCrop
CROP_ATTEMPTS = 10  # likewise
# Random numbers of a sample: jitter, areas and ratios of crops, their position, flip, angle, four strengths, grayscale.
NUMBERS = (1, CROP_ATTEMPTS, CROP_ATTEMPTS, 2, 1, 1, 1, 1, 1, 1, 1)
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
    images: Tensor,
    views: Views,
    crop_scale: float,
    generator: torch.Generator,
    observer: Observer = SILENT,
    size: tuple[int, int] | None = None,
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
        size: height and width of the views in pixels, H' and W'; None for those of the images.

    Returns:
        Two (B, 3, H', W') float32 tensors with values in [0, 1].
    """
    pixels, world = to_pixels(images), World.current()
    batch, height, width, _ = images.shape
    pair = []
    for name in ("view 1", "view 2"):
        drawn = draw(batch * world.size, height, width, views, crop_scale, generator).rows(world)
        observer.traced(name, drawn)
        pair.append(apply(pixels, drawn, size))
    observer.traced("pixels", pair)
    return pair[0], pair[1]


def draw(
    batch: int, height: int, width: int, views: Views, crop_scale: float, generator: torch.Generator
) -> ViewParameters:
    """Sample the parameters of one view for a batch of images of the given size in pixels.

    Those of operations that are switched off are sampled, too: a switch must not change any other random number.
    """
    return parameters_from(uniform_numbers(batch, generator), height, width, views, crop_scale)


def uniform_numbers(batch: int, generator: torch.Generator) -> Tensor:
    """What the parameters of one view are made from: (30 · batch,) random numbers in [0, 1), drawn at once."""
    return torch.rand(sum(NUMBERS) * batch, device=generator.device, generator=generator)


def parameters_from(numbers: Tensor, height: int, width: int, views: Views, crop_scale: float) -> ViewParameters:
    """The parameters of one view from its `uniform_numbers`."""
    batch = len(numbers) // sum(NUMBERS)
    jitter, areas, ratios, offsets, flip, angle, *strengths, grayscale = torch.split(
        numbers, [n * batch for n in NUMBERS]
    )
    plain = jitter >= views.jitter

    def jittered(drawn: Tensor, strength: float, neutral: float = 1.0, lowest: float = 0.0) -> Tensor | None:
        if strength == 0 or views.jitter == 0:
            return None
        return _between(drawn, max(lowest, neutral - strength), neutral + strength).masked_fill(plain, neutral)

    brightness, contrast, saturation, hue = strengths
    return ViewParameters(
        crop=_crops(areas.view(batch, -1), ratios.view(batch, -1), offsets.view(batch, -1), height, width, crop_scale),
        flipped=flip < views.flip,
        angle=_between(angle, -views.rotation, views.rotation),
        brightness=jittered(brightness, views.brightness),
        contrast=jittered(contrast, views.contrast),
        saturation=jittered(saturation, views.saturation),
        hue=jittered(hue, views.hue, neutral=0.0, lowest=-0.5),
        grayscale=grayscale < views.grayscale if views.grayscale > 0 else None,
    )


def apply(pixels: Tensor, parameters: ViewParameters, size: tuple[int, int] | None = None) -> Tensor:
    """One view of every image.

    Args:
        pixels: (B, 3, H, W) float32 in [0, 1].
        parameters: a row for each image.
        size: H' and W' of the view; None for those of the image.

    Returns:
        (B, 3, H', W') float32 in [0, 1].
    """
    view = resample(pixels, parameters.crop, parameters.flipped, parameters.angle, size)
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


def resample(
    pixels: Tensor, crop: Tensor, flipped: Tensor, angle: Tensor, size: tuple[int, int] | None = None
) -> Tensor:
    """Rotate, crop, resize (by default to the original size) and flip, in one bilinear resampling.

    Equal to torchvision's `rotate` (bilinear, black outside), `resized_crop` and `hflip` wherever one of rotation and
    crop is the identity; where both act, one resampling loses less than torchvision's two.

    Args:
        pixels: (B, C, H, W).
        crop: (B, 4) top, left, height, width in pixels.
        flipped: (B,) bool.
        angle: (B,) degrees, counter-clockwise.
        size: H' and W' of the result in pixels; None for H and W.

    Returns:
        (B, C, H', W').
    """
    height, width = pixels.shape[-2:]
    rows_out, columns_out = size or (height, width)
    top, left, crop_height, crop_width = (column.unsqueeze(1) for column in crop.unbind(1))
    rows = (torch.arange(rows_out, device=pixels.device) + 0.5) / rows_out
    columns = (torch.arange(columns_out, device=pixels.device) + 0.5) / columns_out
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


def _crops(areas: Tensor, ratios: Tensor, offsets: Tensor, height: int, width: int, crop_scale: float) -> Tensor:
    """(B, 4) crops, sampled as torchvision's RandomResizedCrop but not rounded to whole pixels.

    Of ten tries the first that fits counts; the whole image if none does.

    Args:
        areas, ratios: (B, 10) numbers in [0, 1), one a try.
        offsets: (B, 2) likewise, of the top and the left.
        height, width: of the image, in pixels.
        crop_scale: the smallest share of its area.
    """
    area = _between(areas, crop_scale, 1.0) * (height * width)
    ratio = torch.exp(_between(ratios, math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
    heights, widths = (area / ratio).sqrt(), (area * ratio).sqrt()
    fits = (heights <= height) & (widths <= width)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    missing = ~fits.gather(1, first)
    crop_height = heights.gather(1, first).masked_fill(missing, height)
    crop_width = widths.gather(1, first).masked_fill(missing, width)
    top = offsets[:, :1] * (height - crop_height)
    left = offsets[:, 1:] * (width - crop_width)
    return torch.cat((top, left, crop_height, crop_width), dim=1)


def _between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Numbers in [0, 1) scaled to [low, high)."""
    return numbers * (high - low) + low


def _blend(view: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor · view + (1 − factor) · other, clamped: torchvision's brightness, contrast and saturation."""
    return torch.lerp(other.expand_as(view), view, factor.view(-1, 1, 1, 1)).clamp(0, 1)


def _luma(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)
