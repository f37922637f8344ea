"""Where images come from: scikit-learn's digits, or any folder."""

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.data.decode import SUFFIXES, decode, resize
from conr.errors import UserError
from conr.parameters import Prepare

NOT_AN_IMAGE = f"not an image file ({', '.join(SUFFIXES)})"


@dataclass(frozen=True)
class Item:
    """One image that has not been read yet.

    Attributes:
        file: its name, relative to the source.
        label: the name of its class, or None if unknown.
        read: returns its (S, S, 3) uint8 pixels, or raises `UnreadableImageError`.
    """

    file: str
    label: str | None
    read: Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True)
class Source:
    """Images in a fixed order.

    Attributes:
        name: what to call the source in messages.
        items: the images.
        skipped: (file, reason) of files that are no images by their name.
    """

    name: str
    items: list[Item]
    skipped: list[tuple[str, str]] = field(default_factory=list)


def open_source(settings: Prepare) -> Source:
    """The source that the parameters describe.

    Raises:
        UserError: a missing folder, a folder without images, or labels that cannot be had.
    """
    if settings.source == "digits":
        return _digits(settings)
    return _folder(settings)


def _digits(settings: Prepare) -> Source:
    if settings.labels not in ("none", "dataset"):
        raise UserError(
            f"prepare.labels: {settings.labels} does not go with prepare.source: digits; use dataset or none"
        )
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target if settings.labels == "dataset" else [None] * len(pixels)
    items = [
        Item(
            file=f"digit-{number:04d}",
            label=None if label is None else str(label),
            read=partial(resize, np.repeat(image[:, :, None], 3, axis=2), settings.image_size),
        )
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True))
    ]
    return Source("scikit-learn's digits", items)


def _folder(settings: Prepare) -> Source:
    root = Path(settings.path).expanduser()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"prepare.path: {root} {what}; set it to the folder that holds your images")
    if settings.labels == "dataset":
        raise UserError(
            "prepare.labels: dataset does not go with prepare.source: folder; use none, folder, parent or csv"
        )
    table = _labels_table(root, settings) if settings.labels == "csv" else None
    items, skipped = [], []
    for relative in _files_below(root):
        if table is not None and relative == settings.labels_file:
            continue
        path = root / relative
        if path.suffix.lower() not in SUFFIXES:
            skipped.append((relative, NOT_AN_IMAGE))
            continue
        label = table.get(relative) if table is not None else _label_from_folders(relative, settings.labels)
        items.append(Item(relative, label, partial(decode, path, settings.image_size, settings.fit)))
    if not items:
        raise UserError(
            f"prepare.path: {root} holds no image at any depth ({', '.join(SUFFIXES)}); {len(skipped)} other files"
        )
    if settings.labels != "none" and all(item.label is None for item in items):
        where = settings.labels_file if table is not None else "a subfolder"
        raise UserError(f"prepare.labels: no image in {root} gets a label from {where}; check it, or use labels: none")
    return Source(str(root), items, skipped)


def _files_below(root: Path) -> list[str]:
    """Files at any depth, relative, in sorted order; hidden files and folders are passed over."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def _label_from_folders(relative: str, labels: str) -> str | None:
    folders = relative.split("/")[:-1]
    if labels == "none" or not folders:
        return None
    return folders[0] if labels == "folder" else folders[-1]


def _labels_table(root: Path, settings: Prepare) -> dict[str, str]:
    path = root / settings.labels_file
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"prepare.labels_file: {settings.labels_file} must lie inside prepare.path, so that DVC sees its changes"
        )
    if not path.is_file():
        raise UserError(f"prepare.labels_file: {path} does not exist")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"file", "label"} <= set(reader.fieldnames or ()):
                raise UserError(f"{path}: the first line must name the columns file and label")
            return {row["file"]: row["label"] for row in reader if row["label"]}
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table in UTF-8 ({error}); save it as CSV in UTF-8") from error
