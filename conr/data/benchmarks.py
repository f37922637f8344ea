"""The data sets of the paper: CIFAR-10, CIFAR-100 in 20 superclasses, STL-10; those of ImageNet are in imagenet.py."""

import pickle
from collections.abc import Iterable, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conr.data.decode import resize
from conr.data.imagenet import imagenet_subset, tiny_imagenet
from conr.data.items import Item, Source, arranged
from conr.errors import UserError
from conr.parameters import Prepare


def open_benchmark(settings: Prepare) -> Source:
    """The data set of the paper that `prepare.source` names, from its files in `prepare.root`.

    Raises:
        UserError: files are missing or damaged, or cannot be downloaded.
    """
    if settings.source == "cifar10":
        return _cifar10(settings)
    if settings.source == "cifar20":
        return _cifar20(settings)
    if settings.source == "stl10":
        return _stl10(settings)
    if settings.source == "tiny-imagenet":
        return tiny_imagenet(settings)
    return imagenet_subset(settings)


def _cifar10(settings: Prepare) -> Source:
    from torchvision.datasets import CIFAR10

    train, test = _read(CIFAR10, "CIFAR-10", settings, [{"train": True}, {"train": False}])
    return arranged(
        "CIFAR-10",
        settings.protocol,
        train=_items("train", train.data, _names(train.targets, train.classes), settings),
        test=_items("test", test.data, _names(test.targets, test.classes), settings),
    )


def _cifar20(settings: Prepare) -> Source:
    from torchvision.datasets import CIFAR100

    train, test = _read(CIFAR100, "CIFAR-100", settings, [{"train": True}, {"train": False}])
    # torchvision gives the fine labels only. It has compared these files with their checksums: safe to unpickle.
    folder = Path(train.root) / CIFAR100.base_folder
    classes = _unpickled(folder / CIFAR100.meta["filename"])["coarse_label_names"]
    train_labels, test_labels = (
        [label for file, _ in files for label in _unpickled(folder / file)["coarse_labels"]]
        for files in (CIFAR100.train_list, CIFAR100.test_list)
    )
    return arranged(
        "CIFAR-100 in 20 superclasses",
        settings.protocol,
        train=_items("train", train.data, _names(train_labels, classes), settings),
        test=_items("test", test.data, _names(test_labels, classes), settings),
    )


def _stl10(settings: Prepare) -> Source:
    from torchvision.datasets import STL10

    splits = [{"split": split} for split in ("unlabeled", "train", "test")]
    unlabelled, train, test = _read(STL10, "STL-10", settings, splits)
    if not hasattr(train, "classes"):  # torchvision does not check this file
        raise UserError(
            f"prepare.root: {Path(train.root) / STL10.base_folder / STL10.class_names_file} is missing; "
            f"unpack {STL10.url} into prepare.root again"
        )
    unlabelled_data, train_data, test_data = (part.data.transpose(0, 2, 3, 1) for part in (unlabelled, train, test))
    return arranged(
        "STL-10",
        settings.protocol,
        train=_items("train", train_data, _names(train.labels, train.classes), settings),
        test=_items("test", test_data, _names(test.labels, test.classes), settings),
        unlabelled=_items("unlabelled", unlabelled_data, [None] * len(unlabelled_data), settings),
    )


def _read(reader: Any, name: str, settings: Prepare, splits: Sequence[dict[str, Any]]) -> list[Any]:
    """The splits of a data set, opened by a reader of torchvision, which compares all files with their checksums."""
    root = Path(settings.root).expanduser()
    folder = root / reader.base_folder
    if not settings.download and not folder.is_dir():
        raise UserError(
            f"prepare.root: {root} does not hold the folder {reader.base_folder} with the files of {name}; "
            f"prepare.download: true fetches it, or unpack {reader.url} there"
        )
    try:
        return [reader(root, download=settings.download, **split) for split in splits]
    except RuntimeError as error:  # torchvision's word for a missing file or a wrong checksum
        raise UserError(
            f"prepare.root: files of {name} in {folder} are missing or damaged (wrong checksum); delete the folder and "
            f"set prepare.download: true to fetch it, or unpack {reader.url} into {root}"
        ) from error
    except (OSError, HTTPException) as error:
        if not settings.download:
            raise UserError(f"prepare.root: the files of {name} in {folder} cannot be read ({error})") from error
        raise UserError(
            f"prepare.download: {name} cannot be fetched from {reader.url} into {root} ({error}); check the network "
            "and the disk and try again, or unpack that archive there yourself"
        ) from error


def _unpickled(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content: dict[str, Any] = pickle.load(file, encoding="latin1")  # written by Python 2
    return content


def _names(labels: Iterable[int], classes: Sequence[str]) -> list[str | None]:
    return [classes[label] for label in labels]


def _items(split: str, pixels: NDArray[np.uint8], labels: Sequence[str | None], settings: Prepare) -> list[Item]:
    """Items of one split; pixels has shape (N, H, W, 3)."""
    return [
        Item(
            file=f"{split}/{number:06d}",
            label=label if settings.labels == "dataset" else None,
            read=partial(resize, image, settings.image_size),
        )
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True))
    ]
