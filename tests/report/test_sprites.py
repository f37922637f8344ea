"""Sprite sheets: what a tile shows, and that all of them fit."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conr.report.sprites import BYTES, COLUMNS, Sprites, sprites


def smooth(count: int, edge: int) -> NDArray[np.uint8]:
    """Different images as smooth as photos are."""
    small = np.random.default_rng(0).integers(0, 256, (count, 3, 3, 3), dtype=np.uint8)
    images = [Image.fromarray(image).resize((edge, edge), Image.Resampling.BICUBIC) for image in small]
    return np.stack([np.asarray(image) for image in images])


def tile(found: Sprites, number: int) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(found.sheets[number // COLUMNS**2])) as sheet:
        row, column = divmod(number % COLUMNS**2, COLUMNS)
        edge = found.edge
        box = (column * edge, row * edge, (column + 1) * edge, (row + 1) * edge)
        return np.asarray(sheet.convert("RGB").crop(box))


def test_small_images_keep_their_pixels_where_there_is_room() -> None:
    images = np.random.default_rng(0).integers(0, 256, (70, 9, 9, 3), dtype=np.uint8)
    order = np.random.default_rng(1).permutation(70)
    found = sprites(images, order)
    assert found.edge == 9
    for number, image in enumerate(order):
        np.testing.assert_array_equal(tile(found, number), images[image])


def test_every_tile_is_its_image_reduced_and_none_bleeds_into_the_next() -> None:
    images = np.zeros((1100, 64, 64, 3), dtype=np.uint8)
    images[1::2] = 255  # next to each other: black and white
    found = sprites(images, np.arange(1100), limit=5_000)
    assert found.edge < 64
    assert len(found.sheets) == 2
    for number in (0, 1, 31, 32, 33, 1023, 1024, 1099):
        assert np.abs(tile(found, number).astype(int) - 255 * (number % 2)).mean() < 6


@pytest.mark.parametrize(("size", "limit"), [(64, 60_000), (50, 30_000)])
def test_tiles_are_means_of_pixels(size: int, limit: int) -> None:
    images = smooth(256, size)
    found = sprites(images, np.arange(256), limit)
    assert 8 <= found.edge < size
    for number in (0, 100, 255):
        expected = Image.fromarray(images[number]).resize((found.edge, found.edge), Image.Resampling.BOX)
        assert np.abs(tile(found, number).astype(int) - np.asarray(expected)).mean() < 12


def test_more_room_gives_larger_tiles_and_all_of_them_fit() -> None:
    images = smooth(500, 128)
    edges = []
    for limit in (50_000, 250_000, 1_000_000):
        found = sprites(images, np.arange(500), limit)
        assert sum(map(len, found.sheets)) <= limit
        edges.append(found.edge)
    assert edges == sorted(set(edges))


def test_images_are_never_enlarged() -> None:
    assert sprites(smooth(5, 100), np.arange(5)).edge == 100


def test_noise_is_as_small_as_it_can_be() -> None:
    """The worst case of 60,000 images, from a part of them."""
    images = np.random.default_rng(0).integers(0, 256, (1200, 32, 32, 3), dtype=np.uint8)
    found = sprites(images, np.arange(1200), BYTES * 1200 // 60_000)
    assert sum(map(len, found.sheets)) <= BYTES * 1200 / 60_000
