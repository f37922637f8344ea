"""The packed store: all images in one memory-mapped uint8 array, with a manifest that says what they are."""

import json
from dataclasses import asdict, dataclass, replace
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
    def label_names(self) -> list[str] | None:
        """The class name of every image, empty where unknown; or None without labels."""
        return None if self.labels is None else [self.class_name(label) for label in self.labels.tolist()]

    def class_name(self, label: int) -> str:
        """The name of a class, empty for an unknown label."""
        return self.manifest.class_names[label] if label >= 0 else ""

    @property
    def scored(self) -> slice:
        """Which images are scored."""
        return slice(self.manifest.score_start, None)

    @property
    def clustered(self) -> slice:
        """Which images k-means sees: the scored ones, but of a held-out protocol those that were trained on."""
        return slice(0, self.manifest.train_count) if self.manifest.protocol == "held-out" else self.scored


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a store.

    Raises:
        UserError: the store is missing, or its manifest is damaged.
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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not a whole store ({error}); delete it and run conr prepare again") from error
    return manifest


def open_store(folder: Path) -> Store:
    """Open a store for reading.

    Raises:
        UserError: it is missing or truncated, or its parts do not match.
    """
    manifest = load_manifest(folder)
    try:
        # Copy-on-write pages: never written to, but PyTorch warns about read-only memory.
        images = np.lib.format.open_memmap(folder / "images.npy", mode="c")
    except Exception as error:  # numpy parses the header as Python: damage there raises errors of many classes
        raise UserError(f"{folder} is not a whole store ({error}); delete it and run conr prepare again") from error
    expected = (manifest.count, manifest.image_size, manifest.image_size, 3)
    if images.shape != expected or images.dtype != np.uint8 or len(manifest.files) != manifest.count:
        raise UserError(
            f"{folder}: images.npy holds {images.shape} {images.dtype}, its manifest says {expected}; "
            "delete the folder and run conr prepare again"
        )
    labels = None if manifest.labels is None else np.array(manifest.labels, dtype=np.int64)
    return Store(images, labels, manifest)


def write_store(folder: Path, manifest: Manifest) -> None:
    """Write the manifest beside images.npy, which makes the folder a store."""
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1))


def write_subset(store: Store, chosen: NDArray[np.int64], folder: Path) -> None:
    """Write some images of a store, in this order, as a store of their own; all of them are trained on and scored."""
    manifest, labels = store.manifest, store.manifest.labels
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", store.images[chosen])
    write_store(
        folder,
        replace(
            manifest,
            count=len(chosen),
            train_count=len(chosen),
            score_start=0,
            files=[manifest.files[index] for index in chosen],
            labels=None if labels is None else [labels[index] for index in chosen],
        ),
    )
