"""TIFF files that Pillow does not read: many bands, and floats in color or of 64 bits. The package tifffile does."""

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from conr.data.opening import File, UnreadableImageError, check_size, check_stack, messages_hidden
from conr.data.tones import GDAL_NO_DATA, stretched

NUMBERS = {1: "whole numbers", 2: "signed numbers", 3: "floats", 5: "complex numbers", 6: "complex numbers"}
BITS, BANDS, SAMPLE_FORMAT = 258, 277, 339  # tags


def read_tiff(file: File, size: int, page: int | None) -> Image.Image:
    """The first three bands as RGB, or the only one as gray.

    Args:
        file: as from `conr.data.opening.read_file`.
        size: height and width that it will be resized to.
        page: which one; None for the maximum of all.

    Raises:
        UnreadableImageError: tifffile is not installed, or the file is out of bounds.
        Exception: it is damaged; tifffile raises whatever it ran into.
    """
    try:
        import tifffile
    except ImportError as error:
        raise UnreadableImageError(f"{_described(file)}; pip install 'conr[tiff]' to read it") from error
    with messages_hidden(), tifffile.TiffFile(BytesIO(file) if isinstance(file, bytes) else file) as tiff:
        chosen = tiff.pages[:] if page is None else [tiff.pages[page]]
        first = next(arrays := _arrays(chosen))
        check_stack(len(chosen), first.shape[1], first.shape[0])
        for values in arrays:
            if values.shape == first.shape:
                first = np.maximum(first, values)
        tag = tiff.pages.first.tags.get(GDAL_NO_DATA)
    height, width, *_ = first.shape
    if first.dtype == np.bool_:
        first = np.where(first, np.uint8(255), np.uint8(0))
    if first.dtype == np.uint8:
        return Image.fromarray(first).convert("RGB")
    return stretched(lambda top, bottom: first[top:bottom], width, height, _number(tag), size)


def _arrays(pages: Any) -> Iterator[NDArray[Any]]:
    """(H, W) or (H, W, 3) values of each page."""
    for page in pages:
        axes, shape = page.axes, dict(zip(page.axes, page.shape, strict=True))
        bands = shape.get("S", 1)
        if axes not in ("YX", "YXS", "SYX") or page.dtype is None or page.dtype.kind not in "buif":
            raise UnreadableImageError(f"a TIFF of a kind that is not read ({axes}, {page.dtype})")
        check_size(shape["X"], shape["Y"], bands * page.dtype.itemsize)
        values = page.asarray()
        if axes == "SYX":
            values = np.moveaxis(values, 0, 2)
        if values.ndim == 3:
            values = values[:, :, :3] if bands >= 3 else values[:, :, 0]
        yield values


def _number(tag: Any) -> float | None:
    try:
        return None if tag is None else float(str(tag.value).strip("\0 "))
    except ValueError:
        return None


def _described(file: File) -> str:
    """What a TIFF holds, by its first directory."""
    try:
        with BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as stream:  # noqa: PTH123
            start = stream.read(8)
            tags = ImageFileDirectory_v2(start + stream.read(8) if start[2] == 43 or start[3] == 43 else start)
            stream.seek(tags.next)
            tags.load(stream)
            bits, kind = tags[BITS][0], tags.get(SAMPLE_FORMAT, (1,))[0]
            bands = f"{tags[BANDS]} bands" if tags.get(BANDS, 1) > 1 else "one band"
            return f"a TIFF of {bands} of {bits}-bit {NUMBERS.get(kind, 'numbers')}"
    except Exception:  # whatever its parser ran into
        return "broken, or a TIFF of a rare kind"
