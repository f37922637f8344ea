"""One image file of any kind → a square RGB array."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
RESAMPLING = Image.Resampling.BICUBIC


class UnreadableImageError(Exception):
    """An image cannot be used; the message is the reason, in a few words."""


def decode(path: Path, size: int, fit: str) -> NDArray[np.uint8]:
    """Read an image as (size, size, 3) uint8 RGB.

    Orientation tags are obeyed, transparency is laid on white, 16-bit and float greyscale is stretched between its own
    minimum and maximum, and of several frames the first counts.

    Args:
        path: a JPEG, PNG, WebP, BMP or TIFF file.
        size: height and width of the result.
        fit: "crop" cuts the middle square, "pad" adds black borders, "stretch" ignores the aspect ratio.

    Raises:
        UnreadableImageError: the file is empty, broken, or larger than Pillow dares to decode.
    """
    try:
        if path.stat().st_size == 0:
            raise UnreadableImageError("empty file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings on odd metadata say nothing about the pixels
            with Image.open(path) as image:
                image.draft("RGB", (2 * size, 2 * size))  # lets the JPEG decoder skip detail that resizing drops
                upright = ImageOps.exif_transpose(image)
                return np.asarray(_square(_to_rgb(upright), size, fit))
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image, whatever its name says") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError("more pixels than can be decoded safely") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow raises on damaged files
        raise UnreadableImageError(f"broken: {error}") from error


def resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 pixels to (size, size, 3)."""
    return np.asarray(_square(Image.fromarray(pixels), size, "stretch"))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
        return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int, fit: str) -> Image.Image:
    if image.size == (size, size):
        return image
    if fit == "crop":
        return ImageOps.fit(image, (size, size), RESAMPLING)
    if fit == "pad":
        return ImageOps.pad(image, (size, size), RESAMPLING)
    return image.resize((size, size), RESAMPLING)
