"""Labeled image sets for photos.py: each is packed by `conr prepare`'s own code; one that is missing is skipped.

Nothing is downloaded, and nothing of a set is part of this repository. The labels only score.

- digits: scikit-learn's 1,797 handwritten digits of 8 pixels, 10 classes.
- hand signs: 2,062 gray photos of 64 pixels, 10 classes; Mavi, Sign Language Digits (arXiv:2011.08927). They are the
  example data of a package with an MIT license: `pip install --no-deps simple-pytorch-wrapper`.
- solar cells: 2,624 electroluminescence photos of 300 pixels, 2 classes (mono- and polycrystalline); Deitsch et al.,
  Solar Energy 2019; CC BY-NC-SA 4.0, so for non-commercial use: `pip install --no-deps elpv-dataset`.
- CIFAR-10: the 10,000 test images as files, in a folder for each class (`--cifar10`; its subfolder test if it has one).
- photos: images of your own, in a folder for each class (`--photos`).
"""

import csv
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import run
from numpy.typing import NDArray
from PIL import Image

from conr import Workspace, load_preset
from conr.data.items import Source
from conr.data.sources import array_source
from conr.data.store import Store, open_store
from conr.observer import SILENT

NAMES = ("digits", "hand signs", "solar cells", "CIFAR-10")
PHOTO_SIZE = 128  # pixels that photos are packed with


class MissingSetError(Exception):
    """What is needed for a set is absent; the message says what."""


@dataclass(frozen=True)
class ImageSet:
    """How to pack a set.

    Attributes:
        name: for people.
        preset: whose parameters it is packed with.
        changes: parameters that differ from the preset's.
        source: gives the images where the parameters cannot name them.
    """

    name: str
    preset: str = "folder"
    changes: Mapping[str, Any] = field(default_factory=dict)
    source: Callable[[], Source] | None = None

    def pack(self, workspace: Workspace) -> Store:
        """The store of the set, packed if it is not there yet."""
        if not workspace.store.is_dir():
            parameters = load_preset(self.preset).changed(self.changes)
            run("prepare", workspace, parameters, SILENT, None if self.source is None else self.source())
        return open_store(workspace.store)


def digits() -> ImageSet:
    """scikit-learn's handwritten digits, as the preset digits packs them."""
    return ImageSet("digits", "digits")


def hand_signs() -> ImageSet:
    """Photos of hands that show a digit."""
    folder = _package("simple_pytorch_wrapper", "simple-pytorch-wrapper") / "examples/data"

    def source() -> Source:
        gray = np.rint(np.load(folder / "X.npy") * 255).astype(np.uint8)
        return array_source(_colored(gray), np.load(folder / "Y.npy").argmax(1).tolist(), gray.shape[1])

    return ImageSet("hand signs", changes={"prepare.image_size": 64}, source=source)


def solar_cells() -> ImageSet:
    """Photos of solar cells, whose two kinds of silicon differ in texture."""
    folder = _package("elpv_dataset", "elpv-dataset") / "data"

    def source() -> Source:
        rows = list(csv.reader((folder / "labels.csv").read_text().splitlines(), delimiter=" ", skipinitialspace=True))
        images = [Image.open(folder / row[0]).convert("L").resize((PHOTO_SIZE, PHOTO_SIZE)) for row in rows]
        return array_source(_colored(np.stack(images)), [row[-1] for row in rows], PHOTO_SIZE)

    return ImageSet("solar cells", changes={"prepare.image_size": PHOTO_SIZE}, source=source)


def cifar10(folder: Path | None) -> ImageSet:
    """CIFAR-10's test images."""
    if folder is None:
        raise MissingSetError("give its folder with --cifar10")
    return _folder("CIFAR-10", folder / "test" if (folder / "test").is_dir() else folder, 32)


def photos(folder: Path | None) -> ImageSet:
    """Images of the user, in a folder for each class."""
    if folder is None:
        raise MissingSetError("give a folder that has one for each class with --photos")
    return _folder(folder.name, folder, PHOTO_SIZE)


def _folder(name: str, folder: Path, size: int) -> ImageSet:
    if not folder.is_dir():
        raise MissingSetError(f"{folder} is no folder")
    path = str(folder.resolve())
    return ImageSet(name, changes={"prepare.path": path, "prepare.labels": "parent", "prepare.image_size": size})


def _package(module: str, name: str) -> Path:
    """The folder of an installed package, none of whose code is run."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise MissingSetError(f"pip install --no-deps {name}")
    return Path(found.origin).parent


def _colored(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(gray[..., None], 3, axis=3)
