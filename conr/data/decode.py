"""One image file of any kind → a square RGB array."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
READ_AT_ONCE = 2**24  # bytes: of a smaller file Pillow's many small reads cost more than one of the whole
RESAMPLING = Image.Resampling.BICUBIC
UPRIGHT = {  # EXIF orientation → what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
        length = path.stat().st_size
        if length == 0:
            raise UnreadableImageError("empty file")
        with Image.open(BytesIO(path.read_bytes()) if length <= READ_AT_ONCE else path) as image:
            image.draft("RGB", (2 * size, 2 * size))  # lets the JPEG decoder skip detail that resizing drops
            image.load()
            return np.asarray(_square(_to_rgb(_upright(image)), size, fit))
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image, whatever its name says") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError("more pixels than can be decoded safely") from error
    except Exception as error:  # on damaged files Pillow raises whatever its parsers ran into
        raise UnreadableImageError(f"broken: {error or type(error).__name__}") from error


def resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 pixels to (size, size, 3)."""
    return np.asarray(_square(Image.fromarray(pixels), size, "stretch"))


def _upright(image: Image.Image) -> Image.Image:
    """Obey the orientation tag; damaged metadata is no reason to lose the pixels.

    `ImageOps.exif_transpose` also rewrites the other tags, and fails on odd ones.
    """
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        finite = values[np.isfinite(values)]
        if finite.size == 0:
            raise UnreadableImageError("no finite value")
        low, high = float(finite.min()), float(finite.max())
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
        scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
        return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _square(image: Image.Image, size: int, fit: str) -> Image.Image:
    if image.size == (size, size):
        return image
    if fit == "crop":
        return ImageOps.fit(image, (size, size), RESAMPLING)
    if fit == "pad":
        # A side of at least one pixel: Pillow would round that of a very thin image to nothing.
        inner = [max(1, round(side * size / max(image.size))) for side in image.size]
        return ImageOps.pad(image.resize((inner[0], inner[1]), RESAMPLING), (size, size))
    return image.resize((size, size), RESAMPLING)
