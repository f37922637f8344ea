"""Small thumbnails of many images as sprite sheets: WebP images of 32 × 32 tiles, together small enough for a page."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conr.data.images import ImageSource

COLUMNS = 32  # tiles of a sheet in each direction
PROBE = 16  # the same of the sheet from which the size of all is estimated
BYTES = 7_000_000  # of all sheets together
MARGIN = 0.97  # of the same, for a probe that is not quite like the rest
LOSSLESS = 100  # the quality at which pixels stay as they are
PIXELATED_BELOW = 64  # the edge of an image up to which its own pixels are worth keeping
KINDS = (  # edge of a tile and quality of WebP, the best first
    *((128, 80), (96, 80), (64, 80), (64, 60), (48, 75), (48, 60), (32, 75), (32, 60)),
    *((24, 60), (24, 45), (24, 30), (20, 45), (20, 30), (16, 45), (16, 30), (16, 10), (8, 30)),
)


@dataclass(frozen=True)
class Sprites:
    """Sheets of tiles.

    Attributes:
        edge: of a tile, in pixels.
        sheets: WebP files, each of 32 rows of 32 tiles; the last one has fewer rows.
    """

    edge: int
    sheets: list[bytes]


def sprites(images: ImageSource, order: NDArray[np.int64], limit: int = BYTES) -> Sprites:
    """Reduce some images to tiles, as large and good as all of them can be in so many bytes.

    Every pixel of a tile is the mean of the pixels that it covers. Images are never enlarged; small ones keep their
    pixels where there is room.

    Args:
        images: (N, S, S, 3) uint8, memory-mapped or not, or in shards; they are read in bounded memory.
        order: (M,) which images, in the order of the tiles, row by row and sheet by sheet.
        limit: bytes of all sheets.
    """
    size = images.shape[1]
    kinds = [(size, LOSSLESS)] if size < PIXELATED_BELOW else []
    kinds += [(min(edge, size), quality) for edge, quality in KINDS]
    probe = order[:: max(len(order) // PROBE**2, 1)][: PROBE**2]

    def fits(edge: int, quality: int) -> bool:
        size_of_probe = len(_encoded(_sheet(images, probe, PROBE, edge), quality))
        return size_of_probe * len(order) <= MARGIN * limit * len(probe)

    edge, quality = next((kind for kind in kinds if fits(*kind)), kinds[-1])
    parts = [order[first : first + COLUMNS**2] for first in range(0, len(order), COLUMNS**2)]
    return Sprites(edge, [_encoded(_sheet(images, part, COLUMNS, edge), quality) for part in parts])


def _sheet(images: ImageSource, order: NDArray[np.int64], columns: int, edge: int) -> NDArray[np.uint8]:
    """(rows · edge, columns · edge, 3) uint8, the rest of the last row black."""
    rows = [_row(images, order[first : first + columns], columns, edge) for first in range(0, len(order), columns)]
    return np.concatenate(rows)


def _row(images: ImageSource, order: NDArray[np.int64], columns: int, edge: int) -> NDArray[np.uint8]:
    """A row of tiles, reduced at once: no pixel covers parts of two tiles, so that none mixes with the next."""
    size = images.shape[1]
    strip = np.zeros((size, columns, size, 3), dtype=np.uint8)
    strip[:, : len(order)] = images[order].swapaxes(0, 1)
    picture = Image.fromarray(strip.reshape(size, columns * size, 3))
    if edge < size:
        picture = picture.resize((columns * edge, edge), Image.Resampling.BOX)
    return np.asarray(picture)


def _encoded(sheet: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", quality=quality, method=2, lossless=quality == LOSSLESS)
    return buffer.getvalue()
