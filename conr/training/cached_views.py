"""Random views of every image, embedded once by a frozen encoder: what a head on frozen features is trained on."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from conr.data.images import ImageSource
from conr.embedding.session import Session, infer
from conr.files import atomic_file
from conr.models.siamese import to_pixels
from conr.observer import SILENT, Observer
from conr.parameters import Views
from conr.training.views import apply, draw

BLOCK = 2**20  # pixels that are augmented at a time


def write_views(
    session: Session,
    images: ImageSource,
    views: Views,
    crop_scale: float,
    count: int,
    seed: int,
    path: Path,
    observer: Observer = SILENT,
) -> None:
    """Write the embeddings of random views of every image, (V, N, D) float32, to an .npy file.

    A view of an image is the same whatever the number of views; memory does not grow with N.

    Args:
        session: an encoder of images of this size.
        images: (N, S, S, 3) uint8, memory-mapped or not, or in shards.
        views: the ranges of the augmentations.
        crop_scale: the smallest share of an image's area that a crop covers.
        count: V.
        seed: of the augmentations.
        path: the .npy file.
        observer: notified of every batch, in a task "embed views".
    """
    dimension = session.get_outputs()[0].shape[1]
    with (
        atomic_file(path) as temporary,
        temporary.open("wb") as file,
        observer.task("embed views", count * len(images)),
        closing(infer(session, _views(images, views, crop_scale, count, seed))) as results,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, len(images), dimension)}
        np.lib.format.write_array_header_1_0(file, header)
        for rows in results:
            file.write(rows.astype("<f4").tobytes())
            observer.step_done(len(rows))


def _views(images: ImageSource, views: Views, crop_scale: float, count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """All images in one random view each, then all in the next, some at a time: (B, S, S, 3) uint8."""
    height, width = images.shape[1:3]
    step = max(BLOCK // (height * width), 1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for first in range(0, len(images), step):
            batch = torch.from_numpy(np.array(images[first : first + step]))
            view = apply(to_pixels(batch), draw(len(batch), height, width, views, crop_scale, generator))
            yield (view * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
