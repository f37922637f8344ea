"""What a source is: images that have not been read yet, in an order in which both parts of a split are contiguous."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.data.decode import SUFFIXES, decode, resize

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
    """Images in a fixed order: unlabeled ones first, then the training split, then the test split.

    Attributes:
        name: what to call the source in messages.
        items: the images.
        train_count: the first so many items are trained on.
        score_start: the items from this one on are scored.
        skipped: (file, reason) of files that are no images by their name, and of folders that are not searched.
    """

    name: str
    items: list[Item]
    train_count: int
    score_start: int
    skipped: list[tuple[str, str]] = field(default_factory=list)


def array_items(name: str, pixels: NDArray[np.uint8], labels: Iterable[str | None], image_size: int) -> list[Item]:
    """Items of (N, H, W, 3) images in memory with N labels; the name is a format of their number."""
    return [
        Item(name.format(number), label, partial(resize, image, image_size))
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True))
    ]


def file_items(
    root: Path, labels: Mapping[str, str | None], image_size: int, fit: str
) -> tuple[list[Item], list[tuple[str, str]]]:
    """The images among some files below a folder, given with their labels; and (file, reason) of the other files."""
    items = [
        Item(file, label, partial(decode, f"{root}/{file}", image_size, fit))
        for file, label in labels.items()
        if file.lower().endswith(SUFFIXES)
    ]
    return items, [(file, NOT_AN_IMAGE) for file in labels if not file.lower().endswith(SUFFIXES)]


def arranged(
    name: str,
    protocol: str,
    train: Sequence[Item],
    test: Sequence[Item] = (),
    unlabeled: Sequence[Item] = (),
    *,
    skipped: Sequence[tuple[str, str]] = (),
) -> Source:
    """The source that a protocol makes of the parts of a data set.

    "all" trains on all parts and scores `train` and `test`; "held-out" trains on all but `test` and scores `test`.
    Images that are `unlabeled` are never scored. The rest is as in `Source`.
    """
    items = [*unlabeled, *train, *test]
    if protocol == "held-out":
        train_count = score_start = len(unlabeled) + len(train)
    else:
        train_count, score_start = len(items), len(unlabeled)
    return Source(name, items, train_count, score_start, list(skipped))
