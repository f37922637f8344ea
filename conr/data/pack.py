"""Packing: all images of a source → the store."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.data.decode import UnreadableImageError
from conr.data.sources import Item, Source
from conr.data.store import Manifest
from conr.errors import UserError
from conr.files import ArrayWriter
from conr.parameters import Prepare
from conr.progress import Progress, silent

CHUNK = 512  # images decoded, then written, at a time
SHOWN = 5  # broken files named in an error


def pack(source: Source, settings: Prepare, folder: Path, progress: Progress = silent) -> Manifest:
    """Read all images of a source into a store; the folder appears only when it is whole.

    Args:
        source: what to read.
        settings: how to make images square, and how many broken ones to accept.
        folder: where the store goes; replaced if it exists.
        progress: told of every image.

    Returns:
        The manifest.

    Raises:
        UserError: too many images are broken, or none is left.
    """
    building = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        manifest = _pack_into(building, source, settings, progress)
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


def _pack_into(folder: Path, source: Source, settings: Prepare, progress: Progress) -> Manifest:
    size = settings.image_size
    kept: list[Item] = []
    broken: list[tuple[str, str]] = []
    digest = hashlib.sha256()
    total = np.zeros(3, dtype=np.uint64)
    squares = np.zeros(3, dtype=np.uint64)
    with (folder / "images.npy").open("wb") as file:
        writer = ArrayWriter(file, (size, size, 3), np.uint8)
        with progress("prepare", len(source.items)) as advance:
            for chunk, outcomes in decode_all(source.items):
                good = []
                for item, outcome in zip(chunk, outcomes, strict=True):
                    if isinstance(outcome, str):
                        broken.append((item.file, outcome))
                    else:
                        kept.append(item)
                        good.append(outcome)
                if good:
                    images = np.stack(good)
                    writer.append(images)
                    digest.update(images.tobytes())
                    flat = images.reshape(-1, 3)
                    total += flat.sum(axis=0, dtype=np.uint64)
                    squares += np.square(flat, dtype=np.uint32).sum(axis=0, dtype=np.uint64)
                advance(len(chunk), note=f"{len(broken)} broken" if broken else "")
        writer.close()
        file.flush()
        os.fsync(file.fileno())
    _check_broken(source, len(kept), broken, settings.max_broken)

    pixels = len(kept) * size**2
    mean = total / pixels / 255
    std = np.sqrt(np.maximum(squares / pixels / 255**2 - mean**2, 0))
    class_names = sorted({item.label for item in kept if item.label is not None})
    numbers = {name: number for number, name in enumerate(class_names)}
    manifest = Manifest(
        source=source.name,
        count=len(kept),
        image_size=size,
        fit=settings.fit,
        mean=mean.tolist(),
        std=np.maximum(std, 1 / 255).tolist(),  # an all-black channel must not divide by zero
        checksum=digest.hexdigest(),
        files=[item.file for item in kept],
        labels=[numbers.get(item.label or "", -1) for item in kept] if numbers else None,
        class_names=class_names,
        skipped=source.skipped + broken,
    )
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1))
    return manifest


def decode_all(items: list[Item]) -> Iterator[tuple[list[Item], list[NDArray[np.uint8] | str]]]:
    """Decode chunk by chunk on all cores (Pillow releases the interpreter lock); a failure becomes its reason."""

    def read(item: Item) -> NDArray[np.uint8] | str:
        try:
            return item.read()
        except UnreadableImageError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(items), CHUNK):
            chunk = items[first : first + CHUNK]
            with warnings.catch_warnings():  # around all threads: the filters are the process's, not a thread's
                warnings.simplefilter("ignore")  # Pillow's warnings on odd metadata say nothing about the pixels
                outcomes = list(pool.map(read, chunk))
            yield chunk, outcomes


def _check_broken(source: Source, kept: int, broken: list[tuple[str, str]], max_broken: float) -> None:
    share = len(broken) / max(kept + len(broken), 1)
    if kept and share <= max_broken:
        return
    examples = "".join(f"\n  {file}: {reason}" for file, reason in broken[:SHOWN])
    more = f"\n  … and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    raise UserError(
        f"{source.name}: {len(broken)} of {kept + len(broken)} images cannot be read ({share:.0%}); "
        f"prepare.max_broken accepts {max_broken:.0%}. Mend or remove them, or raise it.{examples}{more}"
    )
