"""One image file of any kind → a square RGB array."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from conr.data.formats import format_of
from conr.data.opening import (
    File,
    UnreadableImageError,
    check_scans,
    check_stack,
    load,
    lower_bytes,
    opened,
    read_file,
    read_part,
    repaired,
)
from conr.data.tiff import read_tiff
from conr.data.tones import is_wide, no_data, stretched, to_rgb

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


def decode(path: str | Path, size: int, fit: str, page: int | None = 0) -> NDArray[np.uint8]:
    """Read an image as (size, size, 3) uint8 RGB.

    Orientation tags are obeyed. Transparency is laid on white, or on black if what is visible is nearly white. Values
    of more than 8 bits, gray or in color, are stretched between their percentiles 0.1 and 99.9.

    Args:
        path: a file of one of `conr.data.formats`; text takes less memory than a `Path` where there are many.
        size: height and width of the result.
        fit: "crop" cuts the middle square, "pad" adds black borders, "stretch" ignores the aspect ratio.
        page: which page or frame, from 0; None for the maximum of all of the size of the first.

    Raises:
        UnreadableImageError: it is no image or broken, or takes more pixels, memory or work than `conr.data.opening`
            allows.
    """
    return _pixels(lambda: read_file(path), size, fit, page)


def decode_part(path: str, offset: int, length: int, size: int, fit: str) -> NDArray[np.uint8]:
    """Read an image that is a part of a file, such as a member of a tar file.

    Args:
        path: of the file.
        offset, length: of the part, in bytes.
        size, fit: as for `decode`.

    Raises:
        UnreadableImageError: as `decode`.
    """
    return _pixels(lambda: read_part(path, offset, length), size, fit, 0)


def _pixels(read: Callable[[], tuple[File, bytes]], size: int, fit: str, page: int | None) -> NDArray[np.uint8]:
    try:
        return np.asarray(_square(_decoded(*read(), size, page), size, fit))
    except UnreadableImageError:
        raise
    except Exception as error:  # on damaged files Pillow raises whatever its parsers ran into
        raise UnreadableImageError(f"broken: {_reason(error)}") from error


def resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 pixels to (size, size, 3)."""
    return np.asarray(_square(Image.fromarray(pixels), size, "stretch"))


def dimensions(path: str | Path) -> tuple[int, int] | None:
    """Width and height of the image in a file, from its header; None for one that cannot be read."""
    try:
        with opened(*read_file(path)) as image:
            return image.size
    except Exception:  # its reader will say why
        return None


def page_count(path: str | Path) -> int:
    """How many pages or frames a file holds; 1 for one that cannot be read."""
    try:
        file, head = read_file(path)
        if format_of(head) not in ("TIFF", "GIF", "WEBP") or (format_of(head) == "WEBP" and not _is_animated(head)):
            return 1
        with opened(file, head) as image:
            return getattr(image, "n_frames", 1)
    except Exception:  # its reader will say why
        return 1


def _is_animated(webp: bytes) -> bool:
    return webp[12:16] == b"VP8X" and bool(webp[20] & 2)


def _decoded(file: File, head: bytes, size: int, page: int | None) -> Image.Image:
    """The pixels of a file as RGB, upright, at least twice as large as asked for if they were."""
    kind = format_of(head)
    if kind == "JPEG":
        check_scans(file)
        small = _small_jpeg(file, size) if isinstance(file, bytes) else None
        if small is not None:
            return small
    try:
        return _by_pillow(file, head, size, page)
    except UnreadableImageError:
        raise
    except Exception as error:
        with suppress(Exception):
            for data in repaired(file, head):
                return _by_pillow(data, head, size, page)
        if kind == "TIFF" and isinstance(error, UnidentifiedImageError):
            return read_tiff(file, size, page)
        raise


def _by_pillow(file: File, head: bytes, size: int, page: int | None) -> Image.Image:
    with opened(file, head) as image:
        if page is None and getattr(image, "n_frames", 1) > 1:
            return _maximum(image, size)
        image.seek(page or 0)
        lower = lower_bytes(file, head, image, page or 0)
        load(image, size)
        return _upright(image, to_rgb(image, lower, size))


def _maximum(image: Image.Image, size: int) -> Image.Image:
    """The maximum projection of a stack; pages of another size than the first are left out."""
    width, height = image.size
    pages = image.n_frames  # type: ignore[attr-defined]
    check_stack(pages, width, height)
    highest: NDArray[np.generic] | None = None
    for page in range(pages):
        image.seek(page)
        if image.size != (width, height):
            continue
        load(image, size)
        values = np.asarray(image if is_wide(image.mode) else to_rgb(image, None, max(image.size)))
        highest = values.copy() if highest is None else np.maximum(highest, values)
    assert highest is not None
    if highest.ndim == 3:
        return Image.fromarray(highest)
    return stretched(lambda top, bottom: highest[top:bottom], width, height, no_data(image), size)


def _reason(error: Exception) -> str:
    """Why a file cannot be decoded, the same for all files of which it is true."""
    if isinstance(error, UnidentifiedImageError):
        return "what follows its first bytes is no image"
    if isinstance(error, OSError) and error.filename:
        gone = isinstance(error, FileNotFoundError)
        return f"not there when it was read ({error.strerror})" if gone else str(error.strerror)
    if "truncated" in str(error).lower():
        return "the file ends too early (truncated)"
    return str(error) or type(error).__name__


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


def _upright(image: Image.Image, pixels: Image.Image) -> Image.Image:
    """Turn pixels as the orientation tag of an image says; damaged metadata is no reason to lose them.

    `ImageOps.exif_transpose` also rewrites the other tags, and fails on odd ones.
    """
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return pixels
    return pixels if turn is None else pixels.transpose(turn)


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
