"""Packing: all images of a source → the store."""

import hashlib
import os
import shutil
from bisect import bisect_left
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conr.data.items import Source
from conr.data.reading import read_all
from conr.data.store import Manifest, write_store
from conr.errors import UserError
from conr.files import ArrayWriter
from conr.observer import SILENT, Observer
from conr.parameters import Prepare

SHOWN = 5  # broken files named in an error


def pack(source: Source, settings: Prepare, folder: Path, observer: Observer = SILENT) -> Manifest:
    """Read all images of a source into a store; the folder appears only when it is whole.

    Args:
        source: what to read.
        settings: how to make images square, and how many broken ones to accept.
        folder: where the store goes; replaced if it exists.
        observer: notified of every image.

    Returns:
        The manifest.

    Raises:
        UserError: too many images are broken, or none is left to train on or to score.
    """
    building = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        manifest = _pack_into(building, source, settings, observer)
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


@dataclass
class _Packed:
    """What is known of the images once they are written."""

    kept: list[int] = field(default_factory=list)  # positions in the source
    broken: list[tuple[str, str]] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)
    # How often each channel has each value in the images that are trained on.
    values: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), dtype=np.int64))


def _pack_into(folder: Path, source: Source, settings: Prepare, observer: Observer) -> Manifest:
    packed = _write_images(folder / "images.npy", source, settings.image_size, observer)
    _check_broken(source, len(packed.kept), packed.broken, settings.max_broken)
    # Positions of the kept items ascend, so that the parts of the source stay contiguous.
    train_count = bisect_left(packed.kept, source.train_count)
    score_start = bisect_left(packed.kept, source.score_start)
    if train_count == 0 or score_start == len(packed.kept):
        purpose = "train on" if train_count == 0 else "score"
        raise UserError(f"{source.name}: no image to {purpose} can be read; repair them, or use prepare.protocol: all")

    pixels = train_count * settings.image_size**2
    value = np.arange(256)
    mean = packed.values @ value / pixels / 255
    std = np.sqrt(np.maximum(packed.values @ value**2 / pixels / 255**2 - mean**2, 0))
    items = [source.items[position] for position in packed.kept]
    class_names = sorted({item.label for item in items if item.label is not None})
    numbers = {name: number for number, name in enumerate(class_names)}
    manifest = Manifest(
        source=source.name,
        dataset=settings.source,
        protocol=settings.protocol,
        imbalance=settings.imbalance,
        count=len(items),
        train_count=train_count,
        score_start=score_start,
        image_size=settings.image_size,
        fit=settings.fit,
        mean=mean.tolist(),
        std=np.maximum(std, 1 / 255).tolist(),  # an all-black channel must not divide by zero
        checksum=packed.digest.hexdigest(),
        files=[item.file for item in items],
        labels=[numbers.get(item.label or "", -1) for item in items] if numbers else None,
        class_names=class_names,
        skipped=source.skipped + packed.broken,
    )
    write_store(folder, manifest)
    return manifest


def _write_images(path: Path, source: Source, size: int, observer: Observer) -> _Packed:
    packed = _Packed()
    with path.open("wb") as file:
        writer = ArrayWriter(file, (size, size, 3), np.uint8)
        with closing(read_all(source.items)) as chunks, observer.task("prepare", len(source.items)):
            for chunk, outcomes in chunks:
                first = len(packed.kept) + len(packed.broken)
                good = {first + row: pixels for row, pixels in enumerate(outcomes) if not isinstance(pixels, str)}
                packed.kept += good
                pairs = zip(chunk, outcomes, strict=True)
                packed.broken += [(item.file, reason) for item, reason in pairs if isinstance(reason, str)]
                if good:
                    images = np.stack(list(good.values()))
                    writer.append(images)
                    packed.digest.update(images)
                    trained_on = images[: bisect_left(list(good), source.train_count)]
                    for channel, counts in enumerate(packed.values):
                        counts += np.bincount(trained_on[..., channel].ravel(), minlength=256)
                observer.step_done(len(chunk), note=f"{len(packed.broken)} broken" if packed.broken else "")
        writer.close()
        file.flush()
        os.fsync(file.fileno())
    return packed


def _check_broken(source: Source, kept: int, broken: list[tuple[str, str]], max_broken: float) -> None:
    share = len(broken) / max(kept + len(broken), 1)
    if kept and share <= max_broken:
        return
    examples = "".join(f"\n  {file}: {reason}" for file, reason in broken[:SHOWN])
    more = f"\n  … and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    raise UserError(
        f"{source.name}: {len(broken)} of {kept + len(broken)} images cannot be read ({share:.0%}); "
        f"prepare.max_broken accepts {max_broken:.0%}. Repair or remove them, or raise it.{examples}{more}"
    )
