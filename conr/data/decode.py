"""One image file of any kind → a square RGB array."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
READ_AT_ONCE = 2**24  # bytes: for a smaller file Pillow's many small reads cost more than one of the whole
SMALL = 2**16  # pixels: for more, opening the file costs little beside decoding it
# Kinds of segments in a JPEG file (ITU-T T.81, table B.1).
START_OF_FRAME = (0xC0, 0xC2)  # baseline, progressive
START_OF_SCAN = 0xDA
WITHOUT_METADATA = (0xC4, 0xDB, 0xDD, 0xE0, 0xFE)  # Huffman and quantization tables, restart interval, JFIF, comment
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


def decode(path: str | Path, size: int, fit: str) -> NDArray[np.uint8]:
    """Read an image as (size, size, 3) uint8 RGB.

    Orientation tags are obeyed, transparency is laid on white, 16-bit and float grayscale is stretched between its own
    minimum and maximum, and of several frames the first counts.

    Args:
        path: a JPEG, PNG, WebP, BMP or TIFF file; text takes less memory than a `Path` where there are many.
        size: height and width of the result.
        fit: "crop" cuts the middle square, "pad" adds black borders, "stretch" ignores the aspect ratio.

    Raises:
        UnreadableImageError: the file is empty, broken, or too large to decode safely.
    """
    try:
        # Without a `Path`, which takes as long to make as a small file to read. A pipe is never opened: it has no size.
        length = os.stat(path).st_size  # noqa: PTH116
        if length == 0:
            raise UnreadableImageError("empty file")
        if length > READ_AT_ONCE:
            image = _opened(path, size)
        else:
            with open(path, "rb") as file:  # noqa: PTH123
                data = file.read()
            image = _small_jpeg(data, size) or _opened(BytesIO(data), size)
        return np.asarray(_square(image, size, fit))
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image file") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError("more pixels than can be decoded safely") from error
    except Exception as error:  # on damaged files Pillow raises errors of many classes
        raise UnreadableImageError(f"broken: {error or type(error).__name__}") from error


def resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 pixels to (size, size, 3)."""
    return np.asarray(_square(Image.fromarray(pixels), size, "stretch"))


def _opened(file: str | Path | BytesIO, size: int) -> Image.Image:
    """What Pillow makes of the file: upright, RGB, at least twice as large as asked for if it was."""
    with Image.open(file) as image:
        image.draft("RGB", (2 * size, 2 * size))  # lets the JPEG decoder skip detail that resizing drops
        image.load()
        return _to_rgb(_upright(image))


def _small_jpeg(data: bytes, size: int) -> Image.Image | None:
    """A small JPEG file in color; None for any other, for one with metadata, and for a broken one.

    Pillow's decoder takes the file as it is; opening it would take longer than decoding it. The pixels are the same.
    """
    width, height = _color_jpeg_size(data)
    if not 0 < width * height <= SMALL or min(width, height) >= 4 * size:  # of that size on, less can be decoded
        return None
    try:
        return Image.frombytes("RGB", (width, height), data, "jpeg", "RGB", "")
    except (OSError, ValueError):  # Image.open finds the reason
        return None


def _color_jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height in the header of a JPEG file of three channels of 8 bits without metadata; else zeros."""
    width = height = 0
    position = 2 if data.startswith(b"\xff\xd8\xff") else len(data)
    while position + 9 < len(data) and data[position] == 0xFF:  # segments: FF, kind, length in two bytes, content
        kind = data[position + 1]
        if kind == START_OF_SCAN:
            return width, height
        if kind in START_OF_FRAME:  # bits, height, width, channels
            if data[position + 4] != 8 or data[position + 9] != 3:
                break
            height = int.from_bytes(data[position + 5 : position + 7])
            width = int.from_bytes(data[position + 7 : position + 9])
        elif kind not in WITHOUT_METADATA:
            break
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return 0, 0


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
