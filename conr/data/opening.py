"""The one place that opens image files: by their content, in bounds of pixels, bytes and work.

Every number that bounds what a file may cost stands here.
"""

import logging
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import BinaryIO, TypeAlias

from PIL import Image

from conr.data.formats import HEAD, NEEDS_HEIF, described, format_of, heif_is_read

MAX_PIXELS = 178_956_970  # of an image, Pillow's own limit
MAX_BYTES = 2**30  # of an image in memory
MAX_STACK = 2**30  # pixels of all pages whose maximum is taken
MAX_SCANS = 100  # of a JPEG: an encoder writes about ten, and each may cost as much as the whole image
READ_AT_ONCE = 2**24  # bytes: for a smaller file Pillow's many small reads cost more than one of the whole
BLOCK = 2**24  # bytes of a larger file that are searched at a time

BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # of others 4
BYTES_OF_FORMAT = {"JPEG2000": 16, "WEBP": 12, "AVIF": 8}  # where the decoder takes more, measured
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")  # those of the pixels
END_OF_IMAGE = b"\xff\xd9"
FILL = (b"", bytes(range(1, 250)) * 8, bytes(range(249, 0, -1)) * 8)  # behind a JPEG's data, for each a decoding
# How Pillow unpacks the higher byte of each sample of 16 bits in color → how it unpacks the lower one.
LOWER = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGBA;16B": "RGBA;16L", "RGBA;16L": "RGBA;16B"}
LOWER["LA;16B"] = "RGBA"  # gray, its lower byte, transparency, its lower byte
LOWER |= {f"{mode};16N": LOWER[f"{mode};16{'L' if sys.byteorder == 'little' else 'B'}"] for mode in ("RGB", "RGBA")}

File: TypeAlias = str | Path | bytes

# Without a handler Python prints what libraries log, a line per file, to the console.
for _name in ("PIL", "tifffile"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
_stderr_is_redirected = Lock()


class UnreadableImageError(Exception):
    """An image cannot be used; the message is the reason, in a few words."""


def read_file(path: str | Path) -> tuple[File, bytes]:
    """The content of a file, or of a large one its path; and its first bytes.

    Raises:
        UnreadableImageError: it is empty, or no regular file: a pipe is never opened.
        OSError: it cannot be read.
    """
    # Without a `Path`, which takes as long to make as a small file to read.
    status = os.stat(path)  # noqa: PTH116
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError("not a regular file")
    if status.st_size == 0:
        raise UnreadableImageError("empty file")
    with open(path, "rb") as file:  # noqa: PTH123
        data = file.read(HEAD if status.st_size > READ_AT_ONCE else -1)
    return (path if status.st_size > READ_AT_ONCE else data), data[:HEAD]


def read_part(path: str, offset: int, length: int) -> tuple[File, bytes]:
    """A part of a file, such as a member of a tar file; and its first bytes.

    Raises:
        UnreadableImageError: it is empty, or larger than any image may be.
        OSError: the file cannot be read.
    """
    if length == 0:
        raise UnreadableImageError("empty file")
    if length > MAX_BYTES:
        raise UnreadableImageError(f"{length:,} bytes are more than the limit of {MAX_BYTES:,}; save a smaller copy")
    with open(path, "rb") as file:  # noqa: PTH123
        file.seek(offset)
        data = file.read(length)
    return data, data[:HEAD]


def opened(file: File, head: bytes) -> Image.Image:
    """An image whose header was read, and whose pixels are in the bounds if it is loaded as it is.

    Raises:
        UnreadableImageError: it is of no format that is read, or out of bounds.
        UnidentifiedImageError: its header is damaged, or it is of a kind that Pillow cannot read.
        Exception: it is damaged; Pillow raises whatever its parsers ran into.
    """
    kind = format_of(head)
    if kind is None:
        raise UnreadableImageError(described(head))
    if kind == "HEIF":
        if not heif_is_read():
            raise UnreadableImageError(NEEDS_HEIF)
        import pillow_heif

        pillow_heif.register_heif_opener()
    try:
        image = Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=[kind])
    except Image.DecompressionBombError as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        raise UnreadableImageError(too_large(f"{int(found[1]):,} pixels" if found else "its pixels")) from error
    check_size(image.width, image.height, 0)
    return image


def check_size(width: int, height: int, bytes_of_pixel: int) -> None:
    """Whether an image is in the bounds.

    Raises:
        UnreadableImageError: it is not; the message names the numbers.
    """
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(too_large(f"{width:,} × {height:,} pixels"))
    if width * height * bytes_of_pixel > MAX_BYTES:
        taken = f"{width * height * bytes_of_pixel / 2**20:,.0f} MiB"
        raise UnreadableImageError(
            f"{width:,} × {height:,} pixels of {bytes_of_pixel} bytes take {taken} of memory, more than "
            f"{MAX_BYTES / 2**20:,.0f} MiB; save a smaller copy"
        )


def too_large(what: str) -> str:
    """The reason why an image of so many pixels is refused."""
    return f"{what} are more than the limit of {MAX_PIXELS:,}; save a smaller copy"


def check_stack(pages: int, width: int, height: int) -> None:
    """Whether the maximum of so many pages may be taken.

    Raises:
        UnreadableImageError: it may not.
    """
    if pages * width * height > MAX_STACK:
        raise UnreadableImageError(
            f"{pages:,} pages of {width:,} × {height:,} pixels are more than the limit of {MAX_STACK:,} pixels; split "
            "the file, or use prepare.frames: first"
        )


def check_scans(file: File) -> None:
    """Whether a JPEG has no more scans than an encoder writes.

    Raises:
        UnreadableImageError: it has.
    """
    if isinstance(file, bytes):
        scans = file.count(b"\xff\xda")
    else:
        with open(file, "rb") as blocks:  # noqa: PTH123
            scans = sum(block.count(b"\xff\xda") for block in iter(lambda: blocks.read(BLOCK), b""))
    if scans > MAX_SCANS:
        raise UnreadableImageError(f"a JPEG of {scans:,} scans, more than the limit of {MAX_SCANS}; save it again")


def load(image: Image.Image, size: int) -> Image.Image:
    """Decode the pixels of an opened image, fewer where its format can leave out detail that resizing drops.

    Args:
        image: an opened image.
        size: height and width that it will be resized to.

    Returns:
        The image, of the same aspect ratio, at least twice as large as `size` if it was.
    """
    if image.format == "JPEG2000":
        levels = _levels_to_skip(image, 2 * size)
        check_size(image.width >> levels, image.height >> levels, BYTES_OF_FORMAT["JPEG2000"])
        image.reduce = levels  # type: ignore[method-assign, assignment]
    else:
        image.draft("RGB", (2 * size, 2 * size))  # of a JPEG
        bytes_of_pixel = BYTES_OF_FORMAT.get(image.format or "", BYTES_OF_MODE.get(image.mode, 4))
        check_size(image.width, image.height, bytes_of_pixel)
    if image.format == "TIFF":
        with messages_hidden():
            image.load()
    else:
        image.load()
    return image


def _levels_to_skip(image: Image.Image, side: int) -> int:
    """How often a JPEG 2000 can be halved while both sides stay at least so long."""
    file: BinaryIO = image.fp  # type: ignore[attr-defined]
    before = file.tell()
    file.seek(0)
    _, found, style = file.read(2**16).partition(b"\xff\x52\0")  # COD: its levels of decomposition are the 10th byte
    file.seek(before)
    levels = style[6] if found and len(style) > 6 else 0
    # Pillow rounds the sides where the format says to round them up.
    exact = (
        level
        for level in range(min(levels, (min(image.size) // side).bit_length() - 1), 0, -1)
        if all(-(-length >> level) == length + (1 << level - 1) >> level for length in image.size)
    )
    return next(exact, 0)


def lower_bytes(file: File, head: bytes, image: Image.Image, page: int) -> Image.Image | None:
    """The lower byte of each sample of an image in color whose samples have 16 bits; None for any other.

    Pillow reads the higher ones only: all of a camera of 12 bits would be nearly black.

    Args:
        file, head: as from `read_file`.
        image: opened, not loaded.
        page: the one that it is at.
    """
    modes = {_unpacking(args) for _, _, _, args in getattr(image, "tile", ())}
    if len(modes) != 1 or not modes <= LOWER.keys():
        return None
    check_size(image.width, image.height, 8)
    second = opened(file, head)
    second.seek(page)
    second.tile = [  # type: ignore[attr-defined]
        tile._replace(args=lower if isinstance(tile.args, str) else (lower, *tile.args[1:]))
        for tile in second.tile  # type: ignore[attr-defined]
        for lower in [LOWER[_unpacking(tile.args)]]
    ]
    load(second, max(second.size))
    return Image.merge("RGB", [second.getchannel("G")] * 3) if modes == {"LA;16B"} else second


def _unpacking(args: object) -> str:
    return args if isinstance(args, str) else str(args[0]) if isinstance(args, tuple) and args else ""


def repaired(file: File, head: bytes) -> Iterator[bytes]:
    """What to try in place of a file that cannot be decoded: the same pixels without what stands in the way.

    Metadata of a PNG beyond Pillow's limits are left out. A JPEG that lacks its last two bytes gets them, if no pixel
    depends on what else might have followed: several endings are decoded, which differ where data is missing.
    """
    kind = format_of(head)
    if kind not in ("PNG", "JPEG"):
        return
    data = file if isinstance(file, bytes) else Path(file).read_bytes()
    if kind == "PNG":
        yield b"".join([PNG_START, *_png_chunks(data)])
    elif not data.endswith(END_OF_IMAGE):
        data = data.rstrip(b"\xff")
        whole, *others = (data + fill + END_OF_IMAGE for fill in FILL)
        if all(_pixels(whole) == _pixels(other) for other in others):
            yield whole


def _png_chunks(data: bytes) -> Iterator[bytes]:
    position = len(PNG_START)
    while position + 8 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if data[position + 4 : position + 8] in PNG_CHUNKS:
            yield data[position:end]
        position = end


def _pixels(data: bytes) -> bytes:
    with opened(data, data[:HEAD]) as image:
        return image.tobytes()


@contextmanager
def messages_hidden() -> Iterator[None]:
    """Hide what libtiff writes to standard error: it names no file, and the reason of a failure is reported anyway."""
    with _stderr_is_redirected:
        try:
            kept = os.dup(2)
        except OSError:  # closed
            yield
            return
        try:
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            with suppress(OSError):
                os.dup2(kept, 2)
            os.close(kept)
