"""Packing: all images of a source → the store."""

import errno
import hashlib
import os
import shutil
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from conr.data.images import INDEX, Shard, write_index
from conr.data.items import Source
from conr.data.reading import Outcome
from conr.data.store import Manifest, write_store
from conr.data.unfinished import Unfinished
from conr.data.writing import images_of_a_shard
from conr.errors import UserError
from conr.files import ABANDONED
from conr.observer import SILENT, Observer
from conr.parameters import Prepare
from conr.text import printable

SHOWN = 5  # reasons named in an error


def pack(
    source: Source, settings: Prepare, folder: Path, observer: Observer = SILENT, unfinished: Path | None = None
) -> Manifest:
    """Read all images of a source into a store; the folder appears only when it is whole.

    Args:
        source: what to read.
        settings: how to make images square, and how many broken ones to accept.
        folder: where the store goes; replaced if it exists.
        observer: notified of every image.
        unfinished: a folder for what is packed so far, of this process alone, which outlives it; what an earlier one
            has left there, of the same images and settings, is taken over. None where nothing shall be left.

    Returns:
        The manifest.

    Raises:
        UserError: too many images are broken, or none is left to train on or to score.
    """
    _remove_abandoned(folder)
    building = _temporary(folder)
    building.mkdir(parents=True)
    try:
        most = images_of_a_shard(settings.shard_size, settings.image_size)
        kept = Unfinished(unfinished or building / "unfinished", settings.image_size, most)
        manifest = _pack_into(building, source, settings, observer, kept)
        _publish(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


def check_target(folder: Path) -> None:
    """Whether a store can be put there, before any work.

    Raises:
        UserError: it cannot: it is a link or a mount, or something there cannot be written to.
    """
    if folder.is_symlink() or folder.is_mount():
        what = "link" if folder.is_symlink() else "mount"
        raise UserError(
            f"{folder} is a {what}, and the whole folder is replaced; remove the {what}, or put it at {folder.parent}"
        )
    trial = _temporary(folder)
    try:
        trial.mkdir(parents=True)
        trial.rmdir()
    except OSError as error:
        raise UserError(
            f"{folder.parent} cannot be written to ({error.strerror}); make it a folder that you may write to"
        ) from error
    # Twice: another process may be replacing it.
    if all(folder.exists() and not os.access(folder, os.W_OK | os.X_OK) for _ in range(2)):
        raise UserError(f"{folder} cannot be replaced: it is read-only; make it writable, or remove it")


def _temporary(folder: Path) -> Path:
    """A path beside a folder that no other process uses."""
    return folder.with_name(f"{folder.name}.{uuid4().hex}.tmp")


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left: nothing has been written there for long."""
    for left in [*folder.parent.glob(f"{escape(folder.name)}.*.tmp"), folder.with_name(f"{folder.name}.tmp")]:
        with suppress(OSError):
            if max(path.stat().st_mtime for path in (left, *left.iterdir())) < time.time() - ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


def _publish(building: Path, folder: Path) -> None:
    """Put a whole folder in the place of another; of several processes the last wins, with all that is its own."""
    while True:
        try:
            building.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        else:
            return
        before = _temporary(folder)
        with suppress(FileNotFoundError):  # another process was quicker
            folder.rename(before)
        shutil.rmtree(before, ignore_errors=True)


@dataclass
class _Packed:
    """What is known of the images once they are written."""

    kept: list[int] = field(default_factory=list)  # positions in the source
    broken: dict[int, str] = field(default_factory=dict)  # the other positions → why they cannot be read
    digest: Any = field(default_factory=hashlib.sha256)
    keys: list[int] = field(default_factory=list)  # of each image, equal for equal pixels
    blank: list[int] = field(default_factory=list)  # which images have a single color
    # How often each channel has each value in the images that are trained on.
    values: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), dtype=np.int64))
    shards: list[Shard] = field(default_factory=list)  # empty for one file


def _pack_into(folder: Path, source: Source, settings: Prepare, observer: Observer, unfinished: Unfinished) -> Manifest:
    packed = _write_images(unfinished, source, settings.image_size, observer)
    broken = [(source.items[position].file, reason) for position, reason in packed.broken.items()]
    _check_broken(source, len(packed.kept), broken, settings.max_broken)
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
        frames=settings.frames,
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
        skipped=source.skipped + broken,
        broken=len(broken),
        notes=source.notes,
        blank=packed.blank,
        duplicates=_duplicates(packed),
        shards=len(packed.shards) or None,
    )
    unfinished.move_images(folder)
    if packed.shards:
        write_index(folder / INDEX, packed.shards)
    write_store(folder, manifest)
    return manifest


def _write_images(unfinished: Unfinished, source: Source, size: int, observer: Observer) -> _Packed:
    packed, done = _Packed(), unfinished.progress.items
    with (
        unfinished.writer as writer,
        closing(unfinished.chunks(source.items)) as chunks,
        observer.task("prepare", len(source.items), done),
    ):
        for chunk, outcomes in chunks:
            first = len(packed.kept) + len(packed.broken)
            images = _add(packed, first, outcomes, size, source.train_count)
            if first >= done:
                writer.append(images)
                unfinished.save(first + len(chunk), packed.broken)
                observer.step_done(len(chunk), note=f"{len(packed.broken)} broken" if packed.broken else "")
        packed.shards = writer.finish()
    return packed


def _add(packed: _Packed, first: int, outcomes: Sequence[Outcome], size: int, train_count: int) -> NDArray[np.uint8]:
    """Take note of what came of the items from a position on; returns the images among it."""
    good = {first + row: pixels for row, pixels in enumerate(outcomes) if not isinstance(pixels, str)}
    packed.broken |= {first + row: reason for row, reason in enumerate(outcomes) if isinstance(reason, str)}
    packed.kept += good
    images = np.stack(list(good.values())) if good else np.empty((0, size, size, 3), np.uint8)
    packed.digest.update(images)
    packed.blank += (np.flatnonzero(_is_blank(images)) + len(packed.keys)).tolist()
    packed.keys += [hash(image.tobytes()) for image in images]
    trained_on = images[: bisect_left(list(good), train_count)]
    for channel, counts in enumerate(packed.values):
        counts += np.bincount(trained_on[..., channel].ravel(), minlength=256)
    return images


def _is_blank(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(N,) whether all pixels of an image are equal."""
    blank: NDArray[np.bool_] = (images[:, 0] == images[:, 0, :1]).all(axis=(1, 2))  # of most the first row tells
    blank[blank] = (images[blank] == images[blank, :1, :1]).all(axis=(1, 2, 3))
    return blank


def _duplicates(packed: _Packed) -> list[tuple[int, int]]:
    """Images that equal an earlier one, each with the first such; those of a single color are none."""
    _, first, inverse = np.unique(np.array(packed.keys, np.int64), return_index=True, return_inverse=True)
    earlier = first[inverse]
    repeated = earlier < np.arange(len(earlier))
    repeated[np.array(packed.blank, np.int64)] = False
    return [(int(image), int(earlier[image])) for image in np.flatnonzero(repeated)]


def _check_broken(source: Source, kept: int, broken: list[tuple[str, str]], max_broken: float) -> None:
    share = len(broken) / max(kept + len(broken), 1)
    if kept and share <= max_broken:
        return
    reasons = Counter(reason for _, reason in broken)
    first = {reason: file for file, reason in reversed(broken)}
    lines = [
        f"\n  {count:,} × {printable(reason)}; the first: {printable(first[reason])}"
        for reason, count in reasons.most_common(SHOWN)
    ]
    more = f"\n  … and {len(reasons) - SHOWN} other reasons" if len(reasons) > SHOWN else ""
    if not kept:
        raise UserError(f"{source.name}: none of {len(broken):,} images can be read{''.join(lines)}{more}")
    raise UserError(
        f"{source.name}: {len(broken):,} of {kept + len(broken):,} images cannot be read ({share:.0%}); "
        f"prepare.max_broken accepts {max_broken:.0%}. Repair or remove them, or raise it.{''.join(lines)}{more}"
    )
