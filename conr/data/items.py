"""What a source is: images that have not been read yet, in an order in which both parts of a split are contiguous."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.data.decode import decode, page_count, resize
from conr.data.formats import HEAD, NEEDS_HEIF, SUFFIXES, SUFFIXES_OF, SUFFIXES_OF_HEIF, format_of, heif_is_read

OTHER_SUFFIX = "not an image by the suffix of its name"
NO_SUFFIX = "not an image by its content; its name has no suffix"
WITH_PAGES = tuple(suffix for kind in ("TIFF", "GIF", "WEBP") for suffix in SUFFIXES_OF[kind])


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
        notes: what people should know of the source, a sentence each.
    """

    name: str
    items: list[Item]
    train_count: int
    score_start: int
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def array_items(name: str, pixels: NDArray[np.uint8], labels: Iterable[str | None], image_size: int) -> list[Item]:
    """Items of (N, H, W, 3) images in memory with N labels; the name is a format of their number."""
    return [
        Item(name.format(number), label, partial(resize, image, image_size))
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True))
    ]


def file_items(
    root: Path, labels: Mapping[str, str | None], image_size: int, fit: str
) -> tuple[list[Item], list[tuple[str, str]]]:
    """The images among some files below a folder, given with their labels; and (file, reason) of the other files.

    The suffix decides, or of a file without one the content.
    """
    items, others = [], []
    for file, label in labels.items():
        path = f"{root}/{file}"
        reason = _no_image(path)
        if reason:
            others.append((file, reason))
        else:
            items.append(Item(file, label, partial(decode, path, image_size, fit)))
    return items, others


def _no_image(path: str) -> str:
    """Why a file is not taken for an image; empty if it is."""
    name = path.rpartition("/")[2].lower()
    if name.endswith(SUFFIXES):
        return "" if heif_is_read() or not name.endswith(SUFFIXES_OF_HEIF) else NEEDS_HEIF
    if "." in name:
        return OTHER_SUFFIX
    try:
        if Path(path).is_file():
            with open(path, "rb") as file:  # noqa: PTH123
                if format_of(file.read(HEAD)):
                    return ""
    except OSError:
        pass
    return NO_SUFFIX


def paged(root: Path, items: Sequence[Item], frames: str) -> tuple[list[Item], int]:
    """Items of files below a folder as their pages or frames are used; and how many files have more than one.

    Args:
        root: the folder.
        items: as from `file_items`.
        frames: "first" leaves the items as they are, "all" makes one of each page, "max" takes the maximum of all.
    """
    found, stacks = [], 0
    for item in items:
        pages = page_count(f"{root}/{item.file}") if _may_have_pages(item.file) else 1
        stacks += pages > 1
        if pages == 1 or frames == "first":
            found.append(item)
        elif frames == "max":
            found.append(replace(item, read=partial(item.read, page=None)))  # type: ignore[call-arg]
        else:
            numbers = range(pages)
            names = [f"{item.file}#{number + 1:0{len(str(pages))}}" for number in numbers]
            found += [
                replace(item, file=name, read=partial(item.read, page=number))  # type: ignore[call-arg]
                for number, name in zip(numbers, names, strict=True)
            ]
    return found, stacks


def _may_have_pages(file: str) -> bool:
    return file.lower().endswith(WITH_PAGES) or "." not in file.rpartition("/")[2]


def arranged(
    name: str,
    protocol: str,
    train: Sequence[Item],
    test: Sequence[Item] = (),
    unlabeled: Sequence[Item] = (),
    *,
    skipped: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
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
    return Source(name, items, train_count, score_start, list(skipped), list(notes))
