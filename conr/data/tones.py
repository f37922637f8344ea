"""Values of any type, gray or in color, opaque or not → 8 bits of red, green and blue.

Large images are converted a strip at a time and reduced on the way, so that memory stays near what decoding took.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conr.data.opening import UnreadableImageError

PERCENTILES = (0.1, 99.9)  # what lies outside is clipped: one hot pixel must not blacken the rest
SAMPLE = 2**22  # values that the percentiles are taken of, at most
LARGE = 2**24  # pixels: a larger image is reduced before it is resized
STRIP = 2**22  # pixels that are converted at a time
LIGHT = 224  # mean luminance from which the visible part of an image is laid on black, not on white
VISIBLE = [0] * 32 + [255] * 224  # alpha → whether a pixel counts as visible
GDAL_NO_DATA = 42113  # tag of a TIFF: the value of pixels that were not measured

Rows: TypeAlias = Callable[[int, int], NDArray[Any]]  # first row, row behind the last → (h, W) or (h, W, 3) values


def to_rgb(image: Image.Image, lower: Image.Image | None, size: int) -> Image.Image:
    """A loaded image as RGB; one that is much larger than `size` is reduced, to at least 8 times that.

    Args:
        image: with gray or color of any type.
        lower: the lower bytes of its samples, where it holds the higher ones of 16 bits.
        size: height and width that it will be resized to.

    Raises:
        UnreadableImageError: no value is finite.
    """
    width, height = image.size
    factor = _factor(width, height, size)
    if is_wide(image.mode):
        return stretched(
            lambda top, bottom: np.asarray(_strip(image, top, bottom)), width, height, no_data(image), size
        )
    if lower is not None:
        return _stretched_color(image, lower, size)
    if not _has_transparency(image):
        if image.mode == "RGB" and factor == 1:
            return image
        return _in_strips(lambda top, bottom: _strip(image, top, bottom).convert("RGB"), width, height, factor)

    def layer(top: int, bottom: int) -> Image.Image:
        return _strip(image, top, bottom).convert("RGBA")

    ground = _ground(layer(top, bottom) for top, bottom in _strips(width, height, factor))
    return _in_strips(lambda top, bottom: _flat(layer(top, bottom), ground), width, height, factor)


def is_wide(mode: str) -> bool:
    """Whether an image of this mode of Pillow holds gray of more than 8 bits."""
    return mode in ("I", "F") or mode.startswith("I;16")


def stretched(rows: Rows, width: int, height: int, without: float | None, size: int) -> Image.Image:
    """Values of more than 8 bits as RGB: their percentiles 0.1 and 99.9 become black and white.

    Args:
        rows: gives rows of the image.
        width, height: of the image.
        without: the value of pixels without data, which become black; or None.
        size: as for `to_rgb`.

    Raises:
        UnreadableImageError: no value is finite.
    """
    factor = _factor(width, height, size)
    scale = _scale(rows, width, height, without, factor)
    return _in_strips(
        lambda top, bottom: Image.fromarray(scale(rows(top, bottom))).convert("RGB"), width, height, factor
    )


def no_data(image: Image.Image) -> float | None:
    """The value of pixels without data, or None: of a TIFF by GDAL, or the transparent gray of a PNG of 16 bits."""
    text = getattr(image, "tag_v2", {}).get(GDAL_NO_DATA, image.info.get("transparency"))
    with suppress(ValueError):
        return float(str(text).strip("\0 "))
    return None


def _stretched_color(image: Image.Image, lower: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    factor = _factor(width, height, size)

    def rows(top: int, bottom: int) -> NDArray[Any]:
        high, low = (np.asarray(_strip(part, top, bottom), np.uint16)[:, :, :3] for part in (image, lower))
        return np.uint16(256) * high + low

    scale = _scale(rows, width, height, None, factor)
    transparent = _has_transparency(image)

    def layer(top: int, bottom: int) -> Image.Image:
        strip = Image.fromarray(scale(rows(top, bottom)))
        if transparent:
            strip.putalpha(_strip(image, top, bottom).convert("RGBA").getchannel("A"))
        return strip

    if not transparent:
        return _in_strips(layer, width, height, factor)
    ground = _ground(layer(top, bottom) for top, bottom in _strips(width, height, factor))
    return _in_strips(lambda top, bottom: _flat(layer(top, bottom), ground), width, height, factor)


def _scale(
    rows: Rows, width: int, height: int, without: float | None, factor: int
) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
    """What makes 8 bits of the values of an image."""
    low, high = _range(rows, width, height, without, factor)

    def scale(values: NDArray[Any]) -> NDArray[np.uint8]:
        if high <= low:
            return np.zeros(values.shape, np.uint8)
        if values.dtype == np.uint16 and values.size > 2**16:
            table = scale(np.arange(2**16, dtype=np.uint16))
            return np.take(table, values)
        with np.errstate(all="ignore"):
            shares = (values.astype(np.float64) - low) / (high - low)
        shares[values == without] = 0
        return np.nan_to_num(shares * 255, nan=0, posinf=255, neginf=0).clip(0, 255).round().astype(np.uint8)

    return scale


def _range(rows: Rows, width: int, height: int, without: float | None, factor: int) -> tuple[float, float]:
    parts = []
    for top, bottom in _strips(width, height, factor):
        values = rows(top, bottom).ravel()[:: width * height // SAMPLE + 1]
        values = values[np.isfinite(values)]
        parts.append(values if without is None else values[values != without])
    sample = np.concatenate(parts)
    if sample.size == 0:
        raise UnreadableImageError("no finite value")
    low, high = np.percentile(sample, PERCENTILES, method="nearest")
    return (float(low), float(high)) if high > low else (float(sample.min()), float(sample.max()))


def _has_transparency(image: Image.Image) -> bool:
    """Whether the last band is transparency: in a TIFF of four bands it may be near infrared, whatever a tag says.

    Transparency is mostly all or nothing.
    """
    if image.mode == "RGBA" and image.format == "TIFF":
        counts = image.getchannel("A").histogram()
        return 2 * (counts[0] + counts[255]) >= sum(counts)
    return image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info


def _ground(layers: Iterator[Image.Image]) -> str:
    """What an image is laid on so that it can be seen: white, but black if what is visible is light itself."""
    count = total = 0
    for layer in layers:
        counts = layer.convert("L").histogram(layer.getchannel("A").point(VISIBLE))
        count += sum(counts)
        total += sum(value * number for value, number in enumerate(counts))
    return "black" if total > LIGHT * count else "white"


def _flat(layer: Image.Image, ground: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", layer.size, ground), layer).convert("RGB")


def _factor(width: int, height: int, size: int) -> int:
    """By how much to reduce an image before it is resized: its last cells may be cut, an eighth of a pixel at most."""
    return max(1, min(width, height) // (8 * size)) if width * height > LARGE else 1


def _strips(width: int, height: int, factor: int) -> Iterator[tuple[int, int]]:
    step = max(1, STRIP // (width * factor)) * factor
    return ((top, min(top + step, height)) for top in range(0, height, step))


def _strip(image: Image.Image, top: int, bottom: int) -> Image.Image:
    return image if bottom - top == image.height else image.crop((0, top, image.width, bottom))


def _in_strips(convert: Callable[[int, int], Image.Image], width: int, height: int, factor: int) -> Image.Image:
    """The image that converted strips make up, each reduced by the factor."""
    strips = list(_strips(width, height, factor))
    if len(strips) == 1:
        image = convert(0, height)
        return image if factor == 1 else image.reduce(factor)
    result = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top, bottom in strips:
        result.paste(convert(top, bottom).reduce(factor), (0, top // factor))
    return result
