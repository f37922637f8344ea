"""The map of the images as the page's script reads it: compact, as text, in one order of points."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from conr.data.images import ImageSource
from conr.report.figures import CLUSTER_COLORS, map_colors
from conr.report.sprites import COLUMNS, sprites

MOST_POINTS = 2**16 - 1  # so that a point's number, and one for none, fit into 16 bits
SCALE = 2**16 - 1  # of a position
NONE = 2**16 - 1  # the number of no cluster and no label
RATIO_STEP = 0.005  # of a boundary ratio, which is a byte
NAMES = 2_000_000  # characters of all file names; beyond, the beginnings of long ones are left out


@dataclass(frozen=True)
class ImageMap:
    """Images in a plane.

    Attributes:
        images: (N, S, S, 3) uint8, memory-mapped or not, or in shards: the store.
        points: (M,) int64, which of them are on the map; at most 65,535.
        positions: (M, 2) float32.
        clusters: (M,) int64.
        next_clusters: (M,) int64, the second nearest cluster; −1 where there is none.
        boundary_ratios: (M,) float32.
        files: the M names.
        labels: the M labels, empty where unknown; None without labels.
        neighbors: (M, k) int64, the nearest other points of each point, the nearest first, as numbers of points.
    """

    images: ImageSource
    points: NDArray[np.int64]
    positions: NDArray[np.float32]
    clusters: NDArray[np.int64]
    next_clusters: NDArray[np.int64]
    boundary_ratios: NDArray[np.float32]
    files: Sequence[str]
    labels: Sequence[str] | None
    neighbors: NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.points) > MOST_POINTS:
            raise ValueError(f"a map has {MOST_POINTS:,} points at most, not {len(self.points):,}")

    def encoded(self) -> "EncodedMap":
        """The map as text."""
        positions = _quantized(self.positions)
        order = np.argsort(_morton(positions), kind="stable")
        places = np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order))
        tiles = sprites(self.images, self.points[order])
        labels = sorted(set(self.labels or []) - {""})
        numbers = {label: number for number, label in enumerate(labels)} | {"": NONE}
        folders, files = _folders(self.files)
        legend = self._legend(positions)
        content = {
            "count": len(order),
            "images": len(self.images),
            "clusters": legend,
            "edge": tiles.edge,
            "columns": COLUMNS,
            "pixelated": tiles.edge == self.images.shape[1],
            "near": self.neighbors.shape[1],
            "ratioStep": RATIO_STEP,
            "labels": labels,
            "folders": folders,
            "files": files,
            "positions": _words(positions),
            "cluster": _words(self.clusters),
            "next": _words(np.where(self.next_clusters < 0, NONE, self.next_clusters)),
            "label": _words(np.array([numbers[label] for label in self.labels or []])),
            "ratio": _text((self.boundary_ratios / RATIO_STEP).round().clip(0, 255).astype(np.uint8).tobytes()),
            "tile": _words(places),
            "neighbors": _words(self.neighbors),
        }
        return EncodedMap(
            content, {row["number"]: row["color"] for row in legend}, [_text(sheet) for sheet in tiles.sheets]
        )

    @cached_property
    def point_of(self) -> dict[int, int]:
        """The number of the point of an image that is on the map."""
        return {image: point for point, image in enumerate(self.points.tolist())}

    def _legend(self, positions: NDArray[np.uint16]) -> list[dict[str, int]]:
        """Number, size, color and center of each cluster, the largest first."""
        numbers, sizes = np.unique(self.clusters, return_counts=True)
        centers = [np.median(positions[self.clusters == number], axis=0) for number in numbers]
        colors = map_colors(np.array(centers, np.float32).reshape(-1, 2))
        rows = zip(numbers.tolist(), sizes.tolist(), centers, colors, strict=True)
        return [
            {
                "number": number,
                "size": size,
                "color": CLUSTER_COLORS.index(color),
                "x": round(float(center[0])),
                "y": round(float(center[1])),
            }
            for number, size, center, color in sorted(rows, key=lambda row: (-row[1], row[0]))
        ]


@dataclass(frozen=True)
class EncodedMap:
    """The map as text.

    Attributes:
        content: what the script reads; arrays are base64 of little-endian bytes.
        colors: cluster → number of its color.
        sheets: base64 of the sprite sheets.
    """

    content: dict[str, object]
    colors: dict[int, int]
    sheets: list[str] = field(repr=False)


def _quantized(positions: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Positions in a square of 65,536 steps, in the middle of it where they are wider than high or the reverse.

    The second coordinate grows downwards, as on a screen.
    """
    low, high = positions.min(0), positions.max(0)
    extent = max(float((high - low).max()), 1e-9)
    scaled = (positions - (low + high) / 2) / extent * SCALE * np.array([1, -1]) + SCALE / 2
    quantized: NDArray[np.uint16] = scaled.round().clip(0, SCALE).astype(np.uint16)
    return quantized


def _morton(positions: NDArray[np.uint16]) -> NDArray[np.int64]:
    """A number for each position so that most that are near in the plane are near in number (Z-order)."""
    spread = positions.astype(np.int64)
    for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        spread = (spread | (spread << shift)) & mask
    keys: NDArray[np.int64] = spread[:, 0] | (spread[:, 1] << 1)
    return keys


def _folders(files: Sequence[str]) -> tuple[list[str], list[int | str]]:
    """Different folders; and for each file the number of its folder and its name, one after the other."""
    longest = max(NAMES // max(len(files), 1), 24)
    numbers: dict[str, int] = {}
    names: list[int | str] = []
    for file in files:
        short = file if len(file) <= longest else "…" + file[1 - longest :]
        folder, slash, name = short.rpartition("/")
        names += [numbers.setdefault(folder + slash, len(numbers)), name]
    return list(numbers), names


def _words(numbers: NDArray[np.integer]) -> str:
    return _text(numbers.astype("<u2").tobytes())


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
