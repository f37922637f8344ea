"""The map as text: what the script reads is what the map holds."""

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from map_sample import EACH, EDGE, HOSTILE, make_map
from numpy.typing import NDArray

from conr.report import map as module
from conr.report.map import MOST_POINTS, ImageMap


def words(text: Any) -> NDArray[np.uint16]:
    return np.frombuffer(base64.b64decode(text), "<u2")


def test_positions_keep_their_arrangement_in_a_square_and_grow_downwards() -> None:
    found = make_map()
    positions = words(found.encoded().content["positions"]).reshape(-1, 2).astype(float)
    x, y = positions.T
    assert x.min() == 0
    assert x.max() == 65535
    assert y.max() - y.min() == pytest.approx(5 / 25 * 65535, abs=2)  # the grids are 25 wide and 5 high
    assert y.min() + y.max() == pytest.approx(65535, abs=2)
    scale = 65535 / 25
    np.testing.assert_allclose(x, found.positions[:, 0] * scale, atol=1)
    np.testing.assert_allclose(y - y.min(), -found.positions[:, 1] * scale, atol=2)


def test_a_single_place_is_the_middle() -> None:
    found = replace(make_map(), positions=np.ones((3 * EACH, 2), dtype=np.float32))
    positions = words(found.encoded().content["positions"])
    assert set(positions.tolist()) <= {32767, 32768}


def test_numbers_of_points_are_those_of_the_map() -> None:
    found = make_map()
    content = found.encoded().content
    np.testing.assert_array_equal(words(content["cluster"]), found.clusters)
    np.testing.assert_array_equal(words(content["neighbors"]).reshape(-1, 8), found.neighbors)
    following = words(content["next"]).astype(int)
    np.testing.assert_array_equal(np.where(following == 65535, -1, following), found.next_clusters)
    ratios = np.frombuffer(base64.b64decode(str(content["ratio"])), np.uint8) * float(str(content["ratioStep"]))
    np.testing.assert_allclose(ratios, found.boundary_ratios, atol=0.0026)
    names: Any = content["labels"]
    labels = ["" if number == 65535 else names[number] for number in words(content["label"])]
    assert labels == list(found.labels or [])


def test_ratios_beyond_a_byte_are_the_largest_byte() -> None:
    found = replace(make_map(), boundary_ratios=np.full(3 * EACH, 9, dtype=np.float32))
    assert set(base64.b64decode(str(found.encoded().content["ratio"]))) == {255}


def test_without_labels_there_are_none() -> None:
    content = replace(make_map(), labels=None).encoded().content
    assert content["labels"] == []
    assert content["label"] == ""


def names_of(found: ImageMap) -> list[str]:
    content: Any = found.encoded().content
    numbers, names = content["files"][::2], content["files"][1::2]
    return [content["folders"][number] + name for number, name in zip(numbers, names, strict=True)]


def test_names_are_folders_and_names() -> None:
    found = make_map()
    assert names_of(found) == found.files
    assert names_of(found)[0] == HOSTILE
    content: Any = found.encoded().content
    assert set(content["folders"][1:]) == {"folder 0/", "folder 1/"}


def test_of_very_long_names_the_ends_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NAMES", 3 * EACH * 30)
    found = make_map()
    files = [f"{'a' * 100}/{number:03}.png" for number in range(3 * EACH)]
    names = names_of(replace(found, files=files))
    assert {len(name) for name in names} == {30}
    assert all(name.startswith("…a") and name[-20:] == file[-20:] for name, file in zip(names, files, strict=True))


def test_tiles_are_in_an_order_in_which_near_points_are_near() -> None:
    generator = np.random.default_rng(0)
    base, count = make_map(), 3000
    found = ImageMap(
        images=base.images,
        points=np.arange(count) % len(base.images),
        positions=generator.uniform(size=(count, 2)).astype(np.float32),
        clusters=np.zeros(count, dtype=np.int64),
        next_clusters=np.full(count, -1),
        boundary_ratios=np.zeros(count, dtype=np.float32),
        files=["x.png"] * count,
        labels=None,
        neighbors=np.zeros((count, 0), dtype=np.int64),
    )
    encoded = found.encoded()
    tiles = words(encoded.content["tile"])
    assert sorted(tiles) == list(range(count))
    assert len(encoded.sheets) == 3
    corner = (found.positions < 0.2).all(axis=1)
    assert len(set(tiles[corner] // 256)) <= 4  # of 12, through which 120 points by chance would be spread


def test_colors_of_clusters_are_those_of_the_legend() -> None:
    encoded = make_map().encoded()
    legend: Any = encoded.content["clusters"]
    assert [row["number"] for row in legend] == [0, 1, 2]
    assert [row["size"] for row in legend] == [EACH] * 3
    assert {row["number"]: row["color"] for row in legend} == encoded.colors
    assert len(set(encoded.colors.values())) == 3
    assert [row["x"] for row in legend] == pytest.approx([65535 * x / 25 for x in (2.5, 12.5, 22.5)], abs=2)
    assert encoded.content["edge"] == EDGE


def test_more_points_than_numbers_of_16_bits_are_refused() -> None:
    found = make_map()
    with pytest.raises(ValueError, match="65,535 points at most, not 65,536"):
        replace(found, points=np.zeros(MOST_POINTS + 1, dtype=np.int64))
