"""The embeddings of random views of every image: views as in training, embedded by the encoder, always the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_encoder import DIMENSION, images

from conr.embedding.session import INPUT, open_session
from conr.observer import Observer
from conr.parameters import Views
from conr.training import cached_views
from conr.training.cached_views import write_views
from conr.training.views import apply, draw

STILL = Views(flip=0.0, jitter=0.0, grayscale=0.0)
PIXELS = images(9, 8)


def views_of(encoder: Path, folder: Path, **changes: Any) -> NDArray[np.float32]:
    """What is written for the small images, in three views, with changes of the arguments."""
    arguments: dict[str, Any] = {"images": PIXELS, "views": Views(), "crop_scale": 0.3, "count": 3, "seed": 0}
    path = folder / "views.npy"
    write_views(open_session(encoder, "cpu"), path=path, **(arguments | changes))
    rows: NDArray[np.float32] = np.load(path)
    return rows


def test_views_are_those_of_the_augmentation_embedded(encoder: Path, tmp_path: Path) -> None:
    found = views_of(encoder, tmp_path)
    assert (found.shape, found.dtype) == ((3, 9, DIMENSION), np.float32)
    generator, session = torch.Generator().manual_seed(0), open_session(encoder, "cpu")
    scaled = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
    for rows in found:
        view = apply(scaled, draw(9, 8, 8, Views(), 0.3, generator))
        pixels = (view * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(rows, session.run(None, {INPUT: np.ascontiguousarray(pixels)})[0], atol=1e-5)


def test_views_that_change_nothing_are_the_images(encoder: Path, tmp_path: Path) -> None:
    found = views_of(encoder, tmp_path, views=STILL, crop_scale=1.0)
    plain = open_session(encoder, "cpu").run(None, {INPUT: PIXELS})[0]
    similarity = (found * plain).sum(axis=2)
    assert similarity.min() > 0.9, "crops of all the area differ in their aspect only"


def test_a_view_does_not_depend_on_how_many_there_are(encoder: Path, tmp_path: Path) -> None:
    many = views_of(encoder, tmp_path, count=3)
    np.testing.assert_array_equal(views_of(encoder, tmp_path, count=1), many[:1])
    assert np.abs(many[0] - many[1]).max() > 0.01
    assert np.abs(views_of(encoder, tmp_path, count=1, seed=1) - many[:1]).max() > 0.01


def test_views_are_made_in_blocks_and_all_are_announced(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_views, "BLOCK", 4 * 8 * 8)
    announced: list[tuple[str, int]] = []
    done: list[int] = []

    class Counting(Observer):
        @contextmanager
        def task(self, name: str, total: int, done: int = 0) -> Iterator[None]:
            announced.append((name, total))
            yield

        def step_done(self, amount: int = 1, note: str = "") -> None:
            done.append(amount)

    found = views_of(encoder, tmp_path, observer=Counting())
    assert found.shape == (3, 9, DIMENSION)
    np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1, atol=1e-5)
    assert announced == [("embed views", 27)]
    assert done == [4, 4, 1] * 3


def test_one_image_has_views(encoder: Path, tmp_path: Path) -> None:
    assert views_of(encoder, tmp_path, images=PIXELS[:1]).shape == (3, 1, DIMENSION)


def test_an_interruption_leaves_no_file(encoder: Path, tmp_path: Path) -> None:
    class Interrupting(Observer):
        def step_done(self, amount: int = 1, note: str = "") -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        views_of(encoder, tmp_path, observer=Interrupting())
    assert list(tmp_path.iterdir()) == []
