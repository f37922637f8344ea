"""The data sets of the paper: CIFAR-10, CIFAR-100 in 20 superclasses, STL-10; those of ImageNet are in imagenet.py."""

import pickle
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conr.data.items import Source, arranged, array_items
from conr.errors import UserError
from conr.parameters import Prepare


def cifar10(settings: Prepare) -> Source:
    """CIFAR-10; raises UserError where its files are missing or damaged, or cannot be downloaded."""
    from torchvision.datasets import CIFAR10

    train, test = _read(CIFAR10, "CIFAR-10", settings, [{"train": True}, {"train": False}])
    parts = [(train.data, train.targets), (test.data, test.targets)]
    return _arranged("CIFAR-10", settings, train.classes, parts)


def cifar20(settings: Prepare) -> Source:
    """CIFAR-100 with its superclasses as labels; raises UserError as `cifar10`."""
    from torchvision.datasets import CIFAR100

    train, test = _read(CIFAR100, "CIFAR-100", settings, [{"train": True}, {"train": False}])
    # torchvision gives the fine labels only. It has compared these files with their checksums: safe to unpickle.
    folder = Path(train.root) / CIFAR100.base_folder
    names, of_train, of_test = (
        pickle.loads((folder / file).read_bytes(), encoding="latin1")  # written by Python 2
        for file in ("meta", "train", "test")
    )
    parts = [(train.data, of_train["coarse_labels"]), (test.data, of_test["coarse_labels"])]
    return _arranged("CIFAR-100 in 20 superclasses", settings, names["coarse_label_names"], parts)


def stl10(settings: Prepare) -> Source:
    """STL-10 with its unlabeled images; raises UserError as `cifar10`."""
    from torchvision.datasets import STL10

    splits = _read(STL10, "STL-10", settings, [{"split": split} for split in ("train", "test", "unlabeled")])
    train = splits[0]
    if not hasattr(train, "classes"):  # torchvision does not check this file
        raise UserError(
            f"prepare.root: {Path(train.root) / STL10.base_folder / STL10.class_names_file} is missing; "
            f"unpack {STL10.url} into prepare.root again"
        )
    parts = [(split.data.transpose(0, 2, 3, 1), split.labels) for split in splits]
    return _arranged("STL-10", settings, train.classes, parts)


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
    except RuntimeError as error:  # torchvision raises it for a missing file or a wrong checksum
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


def _arranged(
    name: str, settings: Prepare, classes: Sequence[str], parts: Sequence[tuple[NDArray[np.uint8], Sequence[int]]]
) -> Source:
    """The source of (N, H, W, 3) images and N class numbers, −1 where unknown, of train, test and unlabeled images."""
    items = [
        array_items(f"{split}/{{:06d}}", pixels, [classes[n] if n >= 0 else None for n in labels], settings.image_size)
        for split, (pixels, labels) in zip(("train", "test", "unlabeled"), parts, strict=False)
    ]
    return arranged(name, settings.protocol, *items)
