"""Two-view augmentation: batched, on the training device, with parameters of its own for every sample.

Crop, flip, rotation and resizing are one bilinear resampling; brightness, contrast, saturation, hue and greyscale
follow torchvision's functional operations, always in this order. What is drawn (`ViewParameters`) and what is done
with it (`apply`) are apart, so that the operations are tested against torchvision with the same parameters.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from conr.parameters import Views

CROP_RATIO = (3 / 4, 4 / 3)  # width to height, as torchvision's RandomResizedCrop
CROP_ATTEMPTS = 10  # likewise
LUMA = (0.2989, 0.587, 0.114)  # as torchvision's rgb_to_grayscale


@dataclass(frozen=True)
class ViewParameters:
    """The parameters of one view, a row a sample.

    Attributes:
        crop: (B, 4) top, left, height, width in pixels; fractions allowed.
        flipped: (B,) bool, horizontal flip after the crop.
        angle: (B,) rotation in degrees, counter-clockwise, about the image's centre, before the crop.
        brightness, contrast, saturation: (B,) factors, 1 for no change; None skips the operation.
        hue: (B,) shift in [−0.5, 0.5], 0 for no change; None skips the operation.
        grey: (B,) bool; None skips the operation.
    """

    crop: Tensor
    flipped: Tensor
    angle: Tensor
    brightness: Tensor | None = None
    contrast: Tensor | None = None
    saturation: Tensor | None = None
    hue: Tensor | None = None
    grey: Tensor | None = None


def two_views(images: Tensor, views: Views, crop_scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two independent random views of a batch.

    Args:
        images: (B, H, W, 3) uint8, on the device of the generator.
        views: the ranges to draw from.
        crop_scale: the smallest share of an image's area that a crop covers.
        generator: the source of randomness.

    Returns:
        Two (B, 3, H, W) float32 tensors with values in [0, 1].
    """
    pixels = to_pixels(images)
    batch, height, width, _ = images.shape
    first, second = (apply(pixels, draw(batch, height, width, views, crop_scale, generator)) for _ in range(2))
    return first, second


def to_pixels(images: Tensor) -> Tensor:
    """Turn (B, H, W, 3) uint8 into (B, 3, H, W) float32 in [0, 1], without a change of memory layout."""
    return images.permute(0, 3, 1, 2).float() / 255


def draw(
    batch: int, height: int, width: int, views: Views, crop_scale: float, generator: torch.Generator
) -> ViewParameters:
    """Draw the parameters of one view for a batch of images of the given size in pixels.

    What is switched off is drawn all the same: a switch must not change the randomness of anything else.
    """
    device = generator.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(batch, device=device, generator=generator) * (high - low) + low

    def chance(probability: float) -> Tensor:
        return torch.rand(batch, device=device, generator=generator) < probability

    jittered = chance(views.jitter)

    def factor(strength: float) -> Tensor | None:
        drawn = uniform(max(0.0, 1 - strength), 1 + strength)
        return torch.where(jittered, drawn, 1.0) if strength > 0 and views.jitter > 0 else None

    def shift(strength: float) -> Tensor | None:
        drawn = uniform(-strength, strength)
        return torch.where(jittered, drawn, 0.0) if strength > 0 and views.jitter > 0 else None

    def grey(probability: float) -> Tensor | None:
        drawn = chance(probability)
        return drawn if probability > 0 else None

    return ViewParameters(
        crop=_draw_crops(batch, height, width, crop_scale, generator),
        flipped=chance(views.flip),
        angle=uniform(-views.rotation, views.rotation),
        brightness=factor(views.brightness),
        contrast=factor(views.contrast),
        saturation=factor(views.saturation),
        hue=shift(views.hue),
        grey=grey(views.grey),
    )


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
    if parameters.grey is not None:
        view = torch.where(parameters.grey.view(-1, 1, 1, 1), _luma(view), view)
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
    """Turn the hue of every image by its shift, a share of the colour circle, as torchvision's `adjust_hue`.

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
    """(B, 4) crops, drawn as torchvision's RandomResizedCrop but not rounded to whole pixels.

    Of ten tries the first that fits counts; the whole image if none does.
    """
    shape = (batch, CROP_ATTEMPTS)
    device = generator.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(shape, device=device, generator=generator) * (high - low) + low

    area = uniform(crop_scale, 1.0) * (height * width)
    ratio = torch.exp(uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
    heights, widths = (area / ratio).sqrt(), (area * ratio).sqrt()
    fits = (heights <= height) & (widths <= width)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found = fits.gather(1, first)
    crop_height = torch.where(found, heights.gather(1, first), float(height))
    crop_width = torch.where(found, widths.gather(1, first), float(width))
    place = torch.rand(batch, 2, device=device, generator=generator)
    top = place[:, :1] * (height - crop_height)
    left = place[:, 1:] * (width - crop_width)
    return torch.cat((top, left, crop_height, crop_width), dim=1)


def _blend(view: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor · view + (1 − factor) · other, clamped: torchvision's brightness, contrast and saturation."""
    return torch.lerp(other.expand_as(view), view, factor.view(-1, 1, 1, 1)).clamp(0, 1)


def _luma(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)
