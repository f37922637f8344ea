"""The packed store: all images in one memory-mapped uint8 array, with a manifest that says what they are."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.errors import UserError


@dataclass(frozen=True)
class Manifest:
    """What the store holds.

    Attributes:
        source: name of the source.
        count: number of images N.
        image_size: height and width in pixels.
        fit: how images that were not square became so.
        mean, std: per channel, of pixels scaled to [0, 1].
        checksum: SHA-256 of the pixels.
        files: the N names, relative to the source.
        labels: the N class numbers (−1 where unknown), or None. For scores only.
        class_names: names of the classes.
        skipped: (file, reason) of everything that is not in the store.
    """

    source: str
    count: int
    image_size: int
    fit: str
    mean: list[float]
    std: list[float]
    checksum: str
    files: list[str]
    labels: list[int] | None
    class_names: list[str]
    skipped: list[tuple[str, str]]


@dataclass(frozen=True)
class Store:
    """An opened store.

    Attributes:
        images: (N, S, S, 3) uint8, memory-mapped.
        labels: (N,) int64, −1 where unknown; or None.
        manifest: the rest.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    manifest: Manifest


def open_store(folder: Path) -> Store:
    """Open a store for reading.

    Raises:
        UserError: it is missing, or truncated, or its parts do not belong together.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; run conr prepare first (dvc repro runs all stages in order)")
    try:
        content = json.loads((folder / "manifest.json").read_text())
        content["skipped"] = [tuple(pair) for pair in content["skipped"]]
        manifest = Manifest(**content)
        # Copy-on-write pages: never written to, but PyTorch warns about read-only memory.
        images = np.load(folder / "images.npy", mmap_mode="c")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not a whole store ({error}); delete it and run conr prepare again") from error
    expected = (manifest.count, manifest.image_size, manifest.image_size, 3)
    if images.shape != expected or images.dtype != np.uint8 or len(manifest.files) != manifest.count:
        raise UserError(
            f"{folder}: images.npy holds {images.shape} {images.dtype}, its manifest says {expected}; "
            "delete the folder and run conr prepare again"
        )
    labels = None if manifest.labels is None else np.array(manifest.labels, dtype=np.int64)
    return Store(images, labels, manifest)
