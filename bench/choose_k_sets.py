"""Sets with a known number of classes for choose_k.py, in the two parts of docs/lab/choosing-k.md.

Whatever was looked at to settle a rule is in the part development; the part validation only tells how good it is.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import photo_features
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.preprocessing import normalize

from conr.data.decode import decode
from conr.data.long_tail import long_tail
from conr.embedding.frozen import write_frozen_encoder
from conr.embedding.projection import fit_projection
from conr.embedding.session import embed, open_session
from conr.models.backbones import parse_backbone

Features = NDArray[np.float32]
Labels = NDArray[np.int64]

DRAWS: Mapping[str, tuple[int, ...]] = {"development": (0, 1), "validation": (2, 3, 4)}
PARTS = tuple(DRAWS)
CLASSES, RATIO = 10, 10.0
DIGITS, PHOTOS = (4, 6, 8), (3, 5)  # how many classes a draw has
FOLDERS = {"development": "train", "validation": "test"}  # of CIFAR-10
OF_A_CLASS = 1_000  # images of CIFAR-10, as many as the test part has
SIZE, DIMENSION = 32, 128
NOTHING = "nothing to find"
FIRST_DIGIT = 5  # draw 0 has images of this digit alone, draw 1 of the next, and so on


@dataclass(frozen=True)
class KnownSet:
    """A set whose number of classes is known; 1 where there is nothing to find."""

    part: str
    features: str
    name: str
    clusters: int
    load: Callable[[], Features]

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others."""
        return self.part, self.features, self.name


def known_sets(part: str, photos: Path, cifar10: Path | None, state: Path) -> Iterator[KnownSet]:
    """The sets of a part that are there; the others are named.

    Args:
        part: one of `PARTS`.
        photos: the folder of what bench-photos has kept.
        cifar10: the folder with CIFAR-10's test and train.
        state: where features of CIFAR-10 are kept.
    """
    digits = load_digits()
    pixels, labels = normalize(digits.data).astype(np.float32), digits.target.astype(np.int64)
    if part == PARTS[0]:
        yield KnownSet(part, "pixels", "all", CLASSES, lambda: pixels)
    for draw in DRAWS[part]:
        yield from drawn(part, "pixels", draw, labels, DIGITS, partial(_rows, pixels))
    for features in (photo_features.BYOL, photo_features.CONNR):
        for draw in DRAWS[part]:
            path = photo_features.path(photos / "digits", features, draw)
            if path.exists():
                rows = partial(_rows, np.load(path))
                yield KnownSet(part, features, f"all, {draw}", CLASSES, partial(rows, np.arange(len(labels))))
                yield from drawn(part, features, draw, labels, DIGITS, rows)
            else:
                print(f"skipped {path}: run make bench-photos", flush=True)
    if cifar10 is None:
        print(f"skipped CIFAR-10, {FOLDERS[part]}: give its folder with --cifar10", flush=True)
    else:
        yield from photo_sets(part, cifar10 / FOLDERS[part], state / FOLDERS[part])
    for draw in DRAWS[part]:
        yield KnownSet(part, NOTHING, f"blob, {draw}", 1, partial(blob, draw))
        members = pixels[labels == FIRST_DIGIT + draw]
        yield KnownSet(part, NOTHING, f"digit {FIRST_DIGIT + draw}", 1, partial(_centered, members))


def drawn(
    part: str,
    features: str,
    draw: int,
    labels: Labels,
    numbers: tuple[int, ...],
    rows: Callable[[NDArray[np.int64]], Features],
) -> Iterator[KnownSet]:
    """Some classes by chance, for each of several numbers, and all of them long-tailed, largest by chance."""
    for number in numbers:
        classes = np.random.default_rng([number, draw]).choice(CLASSES, number, replace=False)
        kept = np.flatnonzero(np.isin(labels, classes))
        yield KnownSet(part, features, f"{number} classes, {draw}", number, partial(rows, kept))
    names = np.random.default_rng([CLASSES, draw]).permutation(CLASSES)
    tail = long_tail([str(name) for name in names[labels]], RATIO)
    yield KnownSet(part, features, f"long tail, {draw}", CLASSES, partial(rows, tail))


def photo_sets(part: str, images: Path, state: Path) -> Iterator[KnownSet]:
    """CIFAR-10 in features of the frozen network, centered and reduced for each set by itself."""
    files = sorted(images.glob("*/*.jpg"))
    labels = np.unique([file.parent.name for file in files], return_inverse=True)[1]
    random = np.random.default_rng(0)
    members = [np.flatnonzero(labels == number) for number in range(CLASSES)]
    few = [random.choice(own, OF_A_CLASS, replace=False) if len(own) > OF_A_CLASS else own for own in members]
    kept = np.sort(np.concatenate(few))

    def rows(chosen: NDArray[np.int64]) -> Features:
        features = frozen([files[number] for number in kept], state)[chosen]
        return fit_projection(features, DIMENSION).apply(features)

    yield KnownSet(part, photo_features.FROZEN, "all", CLASSES, partial(rows, np.arange(len(kept))))
    for draw in DRAWS[part]:
        yield from drawn(part, photo_features.FROZEN, draw, labels[kept], PHOTOS, rows)


def frozen(files: list[Path], state: Path) -> Features:
    """What the network that conr has ready computes of images, before centering; kept."""
    path = state / "features.npy"
    if not path.exists():
        state.mkdir(parents=True, exist_ok=True)
        write_frozen_encoder(parse_backbone(photo_features.BACKBONE["network.backbone"]), SIZE, state / "encoder.onnx")
        images = np.stack([decode(file, SIZE, "crop") for file in files])
        embed(open_session(state / "encoder.onnx", "cpu"), images, path)
    features: Features = np.load(path, mmap_mode="r")
    return features


def blob(draw: int) -> Features:
    """Directions without groups."""
    return normalize(np.random.default_rng([1, draw]).normal(size=(2000, 64))).astype(np.float32)


def _centered(features: Features) -> Features:
    """Differences from the mean, which all images of a digit share."""
    return normalize(features - features.mean(0))


def _rows(features: Features, chosen: NDArray[np.int64]) -> Features:
    return features[chosen]
