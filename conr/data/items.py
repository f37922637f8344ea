"""What a source is: images that have not been read yet, in an order in which both parts of a split are contiguous."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from conr.data.decode import SUFFIXES

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
    """Images in a fixed order: unlabelled ones first, then the training split, then the test split.

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


def arranged(
    name: str,
    protocol: str,
    train: Sequence[Item],
    test: Sequence[Item] = (),
    unlabelled: Sequence[Item] = (),
    skipped: Sequence[tuple[str, str]] = (),
) -> Source:
    """The source that a protocol makes of the parts of a data set.

    Args:
        name: what to call the source in messages.
        protocol: "all" trains on all parts and scores `train` and `test`; "held-out" trains on all but `test` and
            scores `test`.
        train: the training split.
        test: the test split.
        unlabelled: images without labels, which are trained on and never scored.
        skipped: (file, reason) of files that are no images by their name, and of folders that are not searched.
    """
    items = [*unlabelled, *train, *test]
    if protocol == "held-out":
        train_count = score_start = len(unlabelled) + len(train)
    else:
        train_count, score_start = len(items), len(unlabelled)
    return Source(name, items, train_count, score_start, list(skipped))
