"""Where images come from: scikit-learn's digits, any folder, tar files, or the data sets of the paper."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.data.benchmarks import cifar10, cifar20, stl10
from conr.data.folders import images_below
from conr.data.imagenet import imagenet_subset, tiny_imagenet
from conr.data.items import Item, Source, arranged, array_items, paged
from conr.data.labels import by_table, doubts, folder_label, read_table
from conr.data.long_tail import long_tail
from conr.data.tars import samples_below
from conr.errors import UserError
from conr.parameters import Prepare

NEITHER_TRAIN_NOR_TEST = "neither in train nor in test"
PAGES = {"first": "the first counts", "all": "each is an image", "max": "the maximum of all counts"}


def open_source(settings: Prepare) -> Source:
    """The source that the parameters describe.

    Raises:
        UserError: a missing folder, a folder without images, labels that do not exist, or a failed download.
    """
    # A data set has labels of its own and no others, a folder has others only.
    labeled = "folder, parent or csv" if settings.source == "folder" else "dataset"
    if settings.labels != "none" and (settings.labels == "dataset") == (settings.source == "folder"):
        raise UserError(
            f"prepare.labels: {settings.labels} cannot be used with prepare.source: {settings.source}; use {labeled}, "
            "or none"
        )
    if settings.labels == "none" and settings.imbalance != 1:
        raise UserError(
            f"prepare.imbalance: {settings.imbalance:g} takes a subset by the labels; set prepare.labels to {labeled}, "
            "or imbalance to 1"
        )
    source = READERS[settings.source](settings)
    if settings.labels == "none":
        source = replace(source, items=[replace(item, label=None) for item in source.items])
    return source if settings.imbalance == 1 else _long_tailed(source, settings.imbalance)


def _long_tailed(source: Source, imbalance: float) -> Source:
    """The source with a long tail in the part that is trained on; a test part stays balanced."""
    train, test = source.items[: source.train_count], source.items[source.train_count :]
    labels = [item.label for item in train if item.label is not None]
    key = f"prepare.imbalance: {imbalance:g} takes a subset by the labels"
    if len(labels) < len(train):
        raise UserError(
            f"{key}, but {len(train) - len(labels):,} of {len(train):,} images to train on have none in {source.name}; "
            "label or remove them, or set it to 1"
        )
    if len(set(labels)) < 2:
        raise UserError(f"{key} and needs two classes or more; {source.name} has one. Set it to 1")
    kept = long_tail(labels, imbalance)
    return replace(
        source,
        items=[train[index] for index in kept] + test,
        train_count=len(kept),
        score_start=int(np.searchsorted(kept, source.score_start)),
    )


def _digits(settings: Prepare) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    colored = np.repeat(pixels[:, :, :, None], 3, axis=3)
    items = array_items("digit-{:04d}", colored, map(str, bunch.target), settings.image_size)
    train_count = len(items) - len(items) // 5  # no official split: the last fifth is held out
    return arranged("scikit-learn's digits", settings.protocol, items[:train_count], items[train_count:])


def _folder(settings: Prepare) -> Source:
    root = Path(settings.path)
    check_folder(root)
    images, skipped = images_below(root, f"prepare.path: {root}", settings.image_size, settings.fit, settings.exclude)
    labels, notes = _labels(root, settings, [item.file for item in images])
    if settings.labels == "csv":  # which is a file in the folder, and none that was left out
        skipped = [(file, reason) for file, reason in skipped if file != settings.labels_file]
    labeled = [replace(item, label=labels.get(item.file)) for item in images]
    items, stacks = paged(root, labeled, settings.frames)
    if stacks:
        notes.append(f"{stacks:,} files have more than one page or frame; {PAGES[settings.frames]} (prepare.frames)")
    if settings.protocol == "held-out":
        return _split_by_folders(str(root), items, skipped, notes)
    return arranged(str(root), settings.protocol, items, skipped=skipped, notes=notes)


def _webdataset(settings: Prepare) -> Source:
    root = Path(settings.path)
    check_folder(root)
    items, skipped = samples_below(root, f"prepare.path: {root}", settings)
    notes = doubts({item.file: item.label for item in items})
    if settings.protocol == "held-out":
        return _split_by_folders(str(root), items, skipped, notes)
    return arranged(str(root), settings.protocol, items, skipped=skipped, notes=notes)


def check_folder(root: Path) -> None:
    """Whether prepare.path names a folder.

    Raises:
        UserError: it does not.
    """
    if root.is_dir():
        return
    if root.is_symlink():
        what = f"is a link to {root.readlink()}, which " + ("is no folder" if root.exists() else "does not exist")
    else:
        what = "is not a folder" if root.exists() else "does not exist"
    raise UserError(f"prepare.path: {root} {what}; set it to the folder that holds your images")


def _labels(root: Path, settings: Prepare, files: Sequence[str]) -> tuple[dict[str, str | None], list[str]]:
    """The label of each file below a folder, and what should be known of them."""
    notes: list[str] = []
    if settings.labels == "none":
        return {}, notes
    labels: dict[str, str | None]
    if settings.labels == "csv":
        found, notes = by_table(read_table(_path_of_table(root, settings)), files, settings.labels_file)
        labels = {file: found.get(file) for file in files}
    else:
        skip = 1 if settings.protocol == "held-out" else 0  # train and test are no classes
        labels = {file: folder_label(file, settings.labels, skip) for file in files}
        if not any(labels.values()):
            raise UserError(
                f"prepare.labels: no image in {root} gets a label from a subfolder; check it, or use labels: none"
            )
    return labels, notes + doubts(labels)


def array_source(images: NDArray[np.uint8], labels: Sequence[object] | None, image_size: int) -> Source:
    """Images that are in memory, all of which are trained on and scored.

    Args:
        images: (N, H, W, 3) uint8.
        labels: N labels, for scores only; or None.
        image_size: height and width that they are resized to.

    Raises:
        UserError: the images have another shape or type, or there are not as many labels.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise UserError(f"images must be (N, H, W, 3) uint8, not {images.shape} {images.dtype}")
    if labels is not None and len(labels) != len(images):
        raise UserError(f"there are {len(labels)} labels of {len(images)} images")
    texts = [None] * len(images) if labels is None else map(str, labels)
    return arranged("an array", "all", array_items("{:06d}", images, texts, image_size))


def _split_by_folders(
    root: str, items: Sequence[Item], skipped: Sequence[tuple[str, str]], notes: Sequence[str]
) -> Source:
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
    return arranged(root, "held-out", splits["train"], splits["test"], skipped=sorted([*skipped, *loose]), notes=notes)


def _path_of_table(root: Path, settings: Prepare) -> Path:
    path = root / settings.labels_file
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"prepare.labels_file: {settings.labels_file} must lie inside prepare.path, so that DVC sees its changes"
        )
    if not path.is_file():
        raise UserError(f"prepare.labels_file: {path} does not exist")
    return path


READERS = {
    "cifar10": cifar10,
    "cifar20": cifar20,
    "digits": _digits,
    "folder": _folder,
    "imagenet-dogs": imagenet_subset,
    "imagenet10": imagenet_subset,
    "stl10": stl10,
    "tiny-imagenet": tiny_imagenet,
    "webdataset": _webdataset,
}
