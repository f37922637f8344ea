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
        source: name of the source, for people.
        dataset: the value of prepare.source.
        protocol: the value of prepare.protocol.
        imbalance: the value of prepare.imbalance.
        count: number of images N.
        train_count: the first so many images are trained on.
        score_start: the images from this one on are scored.
        image_size: height and width in pixels.
        fit: how images that were not square became so.
        mean, std: per channel, of the training images' pixels scaled to [0, 1].
        checksum: SHA-256 of the pixels.
        files: the N names, relative to the source.
        labels: the N class numbers (−1 where unknown), or None. For scores only.
        class_names: names of the classes.
        skipped: (file, reason) of everything that is not in the store.
    """

    source: str
    dataset: str
    protocol: str
    imbalance: float
    count: int
    train_count: int
    score_start: int
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

    @property
    def training_images(self) -> NDArray[np.uint8]:
        """(train_count, S, S, 3) uint8, memory-mapped: what may be trained on."""
        return self.images[: self.manifest.train_count]

    @property
    def training_labels(self) -> NDArray[np.int64] | None:
        """(train_count,) int64, −1 where unknown; or None."""
        return None if self.labels is None else self.labels[: self.manifest.train_count]

    @property
    def training_identity(self) -> str:
        """A short text that differs where other pixels are trained on."""
        return f"{self.manifest.checksum}, the first {self.manifest.train_count}"

    @property
    def scored(self) -> slice:
        """Which images are scored."""
        return slice(self.manifest.score_start, None)

    @property
    def scored_labels(self) -> NDArray[np.int64] | None:
        """(N,) int64 labels, −1 where unknown or not scored; or None."""
        if self.labels is None:
            return None
        labels = np.full_like(self.labels, -1)
        labels[self.scored] = self.labels[self.scored]
        return labels

    @property
    def clustered(self) -> slice:
        """Which images k-means sees: the scored ones, but of a held-out protocol those that were trained on."""
        return slice(0, self.manifest.train_count) if self.manifest.protocol == "held-out" else self.scored


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
        if not (0 < manifest.train_count <= manifest.count and 0 <= manifest.score_start < manifest.count):
            raise ValueError(
                f"the first {manifest.train_count} of {manifest.count} images to train on, those from "
                f"{manifest.score_start} on to score"
            )
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
