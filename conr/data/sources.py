"""Where images come from: scikit-learn's digits, any folder, or the data sets of the paper."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from conr.data.benchmarks import open_benchmark
from conr.data.decode import resize
from conr.data.folders import images_below
from conr.data.items import Item, Source, arranged
from conr.data.long_tail import long_tail
from conr.errors import UserError
from conr.parameters import Prepare

NEITHER_TRAIN_NOR_TEST = "neither in train nor in test"


def open_source(settings: Prepare) -> Source:
    """The source that the parameters describe.

    Raises:
        UserError: a missing folder, a folder without images, labels that cannot be had, or a failed download.
    """
    if settings.source == "folder":
        source = _folder(settings)
    elif settings.labels not in ("none", "dataset"):
        raise UserError(
            f"prepare.labels: {settings.labels} does not go with prepare.source: {settings.source}; use dataset or none"
        )
    else:
        source = _digits(settings) if settings.source == "digits" else open_benchmark(settings)
    return source if settings.imbalance == 1 else _long_tailed(source, settings)


def _long_tailed(source: Source, settings: Prepare) -> Source:
    """The source with a long tail in the part that is trained on; a test part stays balanced."""
    train, test = source.items[: source.train_count], source.items[source.train_count :]
    labels = [item.label for item in train if item.label is not None]
    key = f"prepare.imbalance: {settings.imbalance:g} draws a subset by the labels"
    if settings.labels == "none":
        labelled = "folder, parent or csv" if settings.source == "folder" else "dataset"
        raise UserError(f"{key}; set prepare.labels to {labelled}, or imbalance to 1")
    if len(labels) < len(train):
        raise UserError(
            f"{key}, but {len(train) - len(labels):,} of {len(train):,} images to train on have none in {source.name}; "
            "label or remove them, or set it to 1"
        )
    if len(set(labels)) < 2:
        raise UserError(f"{key} and needs two classes or more; {source.name} has one. Set it to 1")
    kept = long_tail(labels, settings.imbalance)
    return Source(
        source.name,
        [train[index] for index in kept] + test,
        train_count=len(kept),
        score_start=int(np.searchsorted(kept, source.score_start)),
        skipped=source.skipped,
    )


def _digits(settings: Prepare) -> Source:
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
    train_count = len(items) - len(items) // 5  # no official split: the last fifth is held out
    return arranged("scikit-learn's digits", settings.protocol, items[:train_count], items[train_count:])


def _folder(settings: Prepare) -> Source:
    root = Path(settings.path)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"prepare.path: {root} {what}; set it to the folder that holds your images")
    if settings.labels == "dataset":
        raise UserError(
            "prepare.labels: dataset does not go with prepare.source: folder; use none, folder, parent or csv"
        )
    table = _labels_table(root, settings) if settings.labels == "csv" else None
    found, skipped = images_below(root, f"prepare.path: {root}", settings.image_size, settings.fit)
    items = [replace(item, label=_label(item.file, table, settings)) for item in found]
    if table is not None:  # which is a file in the folder, and none that was left out
        skipped = [(file, reason) for file, reason in skipped if file != settings.labels_file]
    if settings.labels != "none" and all(item.label is None for item in items):
        where = settings.labels_file if table is not None else "a subfolder"
        raise UserError(f"prepare.labels: no image in {root} gets a label from {where}; check it, or use labels: none")
    if settings.protocol == "held-out":
        return _split_by_folders(str(root), items, skipped)
    return arranged(str(root), settings.protocol, items, skipped=skipped)


def _split_by_folders(root: str, items: Sequence[Item], skipped: Sequence[tuple[str, str]]) -> Source:
    """The images in train and test, the folders' names in the convention of torchvision's ImageFolder."""
    splits: dict[str, list[Item]] = {}
    loose = []
    for item in items:
        folder, slash, _ = item.file.partition("/")
        if slash:
            splits.setdefault(folder, []).append(item)
        else:
            loose.append((item.file, NEITHER_TRAIN_NOR_TEST))
    if splits.keys() != {"train", "test"}:
        found = ", ".join(splits) or "no folder with images"
        raise UserError(
            f"prepare.protocol: held-out expects images in the folders train and test of {root}, and in no other; "
            f"found {found}. Rename them, or use protocol: all"
        )
    return arranged(root, "held-out", splits["train"], splits["test"], skipped=sorted([*skipped, *loose]))


def _label(file: str, table: Mapping[str, str] | None, settings: Prepare) -> str | None:
    if table is not None:
        return table.get(file)
    folders = file.split("/")[:-1]
    if settings.protocol == "held-out":
        folders = folders[1:]  # train and test are no classes
    if settings.labels == "none" or not folders:
        return None
    return folders[0] if settings.labels == "folder" else folders[-1]


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
