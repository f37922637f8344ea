"""The packed store: all images as one uint8 array or as shards of it, with a manifest that says what they are."""

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from conr.data.images import IMAGES, INDEX, ImageSource, check_shards, first_images, open_images
from conr.errors import UserError
from conr.files import load_json, write_json

AGAIN = "delete the folder and run conr prepare again"
MANIFEST = "manifest.json"
ROWS = 256  # images that are hashed at a time
CHECKED = 2**26  # bytes of pixels: so many are compared with their checksum whenever a store is opened


def _read_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value.keys() == {"bytes"} and isinstance(value["bytes"], str):
        return os.fsdecode(bytes.fromhex(value["bytes"]))
    raise ValueError('should be text, or {"bytes": hexadecimal digits}')


def _write_text(text: str) -> str | dict[str, str]:
    try:
        text.encode()
    except UnicodeEncodeError:
        return {"bytes": os.fsencode(text).hex()}
    return text


# A file name may hold bytes that are no UTF-8, which Python keeps as lone surrogates, and JSON cannot.
Text = Annotated[str, PlainValidator(_read_text), PlainSerializer(_write_text)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Manifest(BaseModel):
    """What the store holds.

    Attributes:
        source: name of the source, for people.
        dataset: the value of prepare.source.
        protocol: the value of prepare.protocol.
        imbalance: the value of prepare.imbalance.
        frames: the value of prepare.frames.
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
        broken: so many of them, the last, are images that cannot be read.
        notes: what people should know of the source, a sentence each.
        blank: which images have a single color, ascending.
        duplicates: which images equal an earlier one, ascending, each with the first such; without those of a single
            color.
        shards: so many files hold the images; None for one that is no shard.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    source: Text
    dataset: str
    protocol: str
    imbalance: Annotated[float, Field(ge=1)]
    frames: str = "first"
    count: Annotated[int, Field(ge=1)]
    train_count: Annotated[int, Field(ge=1)]
    score_start: Count
    image_size: Annotated[int, Field(ge=1)]
    fit: str
    mean: Annotated[list[Share], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3, max_length=3)]
    checksum: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    files: list[Text]
    labels: list[Annotated[int, Field(ge=-1)]] | None = None
    class_names: list[Text] = []
    skipped: list[tuple[Text, Text]] = []
    broken: Count = 0
    notes: list[Text] = []
    blank: list[Count] = []
    duplicates: list[tuple[Count, Count]] = []
    shards: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        labels, numbers = self.labels, [*self.blank, *(image for image, _ in self.duplicates)]
        for wrong, what in (
            (self.train_count > self.count, f"train_count is {self.train_count}, count {self.count}"),
            (self.score_start >= self.count, f"score_start is {self.score_start}, count {self.count}"),
            (len(self.files) != self.count, f"there are {len(self.files)} files, count is {self.count}"),
            (labels is not None and len(labels) != self.count, "there are not as many labels as images"),
            (max(labels or [-1]) >= len(self.class_names), "a label is larger than the number of class_names"),
            (len(set(self.class_names)) != len(self.class_names), "class_names are not different"),
            (self.broken > len(self.skipped), "more files are broken than skipped"),
            (max(numbers, default=-1) >= self.count, "blank or duplicates name an image that is not there"),
            (any(first >= image for image, first in self.duplicates), "an image is the duplicate of a later one"),
        ):
            if wrong:
                raise ValueError(what)
        return self

    @property
    def training_identity(self) -> str:
        """A short text that differs where other pixels are trained on."""
        return f"{self.checksum}, the first {self.train_count}"

    @property
    def images_file(self) -> str:
        """The name of the file that `conr.data.images.open_images` opens."""
        return IMAGES if self.shards is None else INDEX


@dataclass(frozen=True)
class Store:
    """An opened store.

    Attributes:
        images: (N, S, S, 3) uint8, memory-mapped or in shards.
        labels: (N,) int64, −1 where unknown; or None.
        manifest: the rest.
    """

    images: ImageSource
    labels: NDArray[np.int64] | None
    manifest: Manifest

    @property
    def training_images(self) -> ImageSource:
        """(train_count, S, S, 3) uint8, memory-mapped or in shards: what may be trained on."""
        return first_images(self.images, self.manifest.train_count)

    @property
    def training_labels(self) -> NDArray[np.int64] | None:
        """(train_count,) int64, −1 where unknown; or None."""
        return None if self.labels is None else self.labels[: self.manifest.train_count]

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
    return load_json(folder / MANIFEST, Manifest, AGAIN)


def open_store(folder: Path) -> Store:
    """Open a store for reading.

    Raises:
        UserError: it is missing or truncated, or its parts do not match.
    """
    manifest = load_manifest(folder)
    images, name = open_images(folder / manifest.images_file, manifest.image_size, AGAIN), manifest.images_file
    expected = (manifest.count, manifest.image_size, manifest.image_size, 3)
    if images.shape != expected or images.dtype != np.uint8:
        raise UserError(
            f"{folder}: {name} holds {images.shape} {images.dtype}, its manifest says {expected} uint8; {AGAIN}"
        )
    labels = None if manifest.labels is None else np.array(manifest.labels, dtype=np.int64)
    store = Store(images, labels, manifest)
    if images.nbytes <= CHECKED:
        verify(store, folder)
    return store


def open_same_store(folder: Path, identity: str) -> Store:
    """Open the store that another process has opened, perhaps on another host.

    Args:
        folder: of the store.
        identity: of the other's images (`Manifest.training_identity`).

    Raises:
        UserError: as `open_store`; or it holds other images.
    """
    store = open_store(folder)
    if store.manifest.training_identity != identity:
        raise UserError(
            f"{folder.absolute()} on {platform.node()} holds other images than on the host of the first process; copy "
            "that one's to here"
        )
    return store


def verify(store: Store, folder: Path) -> None:
    """Compare the pixels with their checksum, half a gigabyte a second or more.

    Raises:
        UserError: they are other pixels; a shard that is another file is named.
    """
    check_shards(store.images)
    digest = hashlib.sha256()
    for first in range(0, len(store.images), ROWS):
        digest.update(store.images[first : first + ROWS].tobytes())
    if digest.hexdigest() != store.manifest.checksum:
        name = store.manifest.images_file
        raise UserError(f"{folder}: {name} holds other pixels than its manifest says (checksum); {AGAIN}")


def write_store(folder: Path, manifest: Manifest) -> None:
    """Write the manifest beside the images, which makes the folder a store."""
    write_json(folder / MANIFEST, manifest)


def write_subset(store: Store, chosen: NDArray[np.int64], folder: Path) -> None:
    """Write some images of a store, in this order, as a store of their own, of one file.

    All of them are trained on and scored.
    """
    manifest, labels = store.manifest, store.manifest.labels
    folder.mkdir(parents=True)
    images = store.images[chosen]
    np.save(folder / IMAGES, images)
    changes = {
        "count": len(chosen),
        "train_count": len(chosen),
        "score_start": 0,
        "checksum": hashlib.sha256(images.tobytes()).hexdigest(),
        "files": [manifest.files[index] for index in chosen],
        "labels": None if labels is None else [labels[index] for index in chosen],
        "blank": [],
        "duplicates": [],
        "shards": None,
    }
    write_store(folder, manifest.model_copy(update=changes))
