"""The comparison on labeled image sets: draws, features, resuming, and the tables."""

import json
from pathlib import Path

import numpy as np
import photo_features
import photo_sets
import photos
import pytest
from PIL import Image

from conr import Workspace
from conr.data.long_tail import long_tail_sizes

pytestmark = pytest.mark.bench

SCORES = {"acc": 0.5, "nmi": 0.25, "ari": 0.125, "class_acc": 0.5}
COST = {"wall": 1.0, "processor": 2.0, "memory": 3.0}


def line(features: str, method: str, seed: int, **changes: float) -> photos.Row:
    return photos.row_of(("digits", features, method), seed, {"count": 40}, SCORES, COST, changes)


def test_a_draw_has_the_sizes_of_the_tail_in_an_order_by_chance() -> None:
    labels = np.repeat(np.arange(5), 100)
    draws = [photos.drawn(labels, seed) for seed in range(3)]
    expected = long_tail_sizes([100] * 5, photos.RATIO)
    sizes = [np.bincount(labels[draw], minlength=5).tolist() for draw in draws]
    assert [sorted(found, reverse=True) for found in sizes] == [expected] * 3
    assert sizes[0] != sizes[1]
    for draw in draws:
        assert (np.diff(draw) > 0).all()
    np.testing.assert_array_equal(photos.drawn(labels, 2), draws[2])


def test_pixels_are_reduced_and_colors_are_of_unit_length(tmp_path: Path) -> None:
    for name, color in (("red", (255, 0, 0)), ("gray", (100, 100, 100))):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), color).save(tmp_path / "images" / name / "0.png")
    workspace = Workspace.at(tmp_path / "state")
    photo_sets.photos(tmp_path / "images").pack(workspace)
    gray, red = photo_features.pixels(workspace)
    assert gray.shape == (16 * 16 * 3,)
    np.testing.assert_allclose(gray, 100 / 255, rtol=1e-6)
    assert red.reshape(-1, 3).tolist() == [[1.0, 0.0, 0.0]] * 256
    gray, red = photo_features.colors(workspace)
    assert np.flatnonzero(red).tolist() == [5 * 36]
    assert np.flatnonzero(gray).tolist() == [2 * 36 + 2 * 6 + 2]
    assert red.max() == gray.max() == 1


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert next(iter(list(photos.available(tmp_path / "nothing", None)))).name == "digits"
    skipped = capsys.readouterr().out.splitlines()
    assert f"skipped CIFAR-10: {tmp_path / 'nothing'} is no folder" in skipped
    assert "skipped photos: give a folder that has one for each class with --photos" in skipped


def test_a_line_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    row = line("pixels", "graph", 0)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row)[:20])
    assert photos.read_rows(tmp_path / "rows.jsonl") == [row]


def test_only_missing_seeds_are_clustered(tmp_path: Path) -> None:
    kinds = photos.features_of("digits", heads=True)
    assert kinds == ("pixels", "Lite0", "BYOL", "ConNR", "Lite0 + ConNR")
    rows = [line(features, method, 3) for features in kinds for method in ("k-means", "graph", "auto")]
    rows.remove(line("BYOL", "auto", 3))
    left = {work.args[1:4]: work.args[4] for work in photos.clusterings(tmp_path / "digits", kinds, [3, 4], rows)}
    assert left["digits", "BYOL", 3] == ["auto"]
    assert left["digits", "BYOL", 4] == ["k-means", "graph", "auto"]
    assert left["digits, long tail", "pixels", 3] == ["k-means", "graph", "auto"]
    assert len(left) == 2 * 5 * 2 - 4


def test_only_missing_features_are_computed(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    for features, seed in (("pixels", 0), ("ConNR", 3), ("Lite0 + ConNR", 3)):
        file = photo_features.path(folder, features, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    left = [work.args for work in photos.feature_works(folder, photos.features_of("digits", heads=True), [3, 4])]
    assert left == [(folder, "Lite0"), (folder, 4), (folder, [4])]


def test_features_are_computed_and_clustered_and_the_rows_have_scores_and_costs(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    photo_sets.digits().pack(Workspace.at(folder))
    (computed,) = photos.compute(folder, "pixels")
    assert photos.key_of(computed) == ("digits", "pixels", "features")
    (whole,) = photos.cluster(folder, "digits", "pixels", 0, ["k-means"])
    by_kmeans, by_graph, auto = photos.cluster(folder, "digits, long tail", "pixels", 1, photos.METHODS)
    assert 0.75 < whole["acc"] < 0.85
    assert (whole["count"], whole["seed"], auto["seed"]) == (1797, 0, 1)
    assert auto["acc"] in (by_kmeans["acc"], by_graph["acc"])
    assert 0.4 < by_graph["class_acc"] <= 1
    assert by_graph["count"] < 800
    assert auto["processor"] == pytest.approx(by_kmeans["processor"] + by_graph["processor"], abs=1e-4)
    assert by_graph["memory"] >= 0


def test_the_table_has_means_and_the_gain_of_the_graph() -> None:
    rows = [line("pixels", "graph", seed, acc=0.6 + seed / 10) for seed in range(3)]
    rows += [line("pixels", "k-means", seed) for seed in range(3)]
    rows += [photos.row_of(("digits", "pixels", "features"), 0, {**COST, "processor": 7.0})]
    found = photos.tables(rows).splitlines()
    assert found[2].startswith("| digits | 40 | pixels | k-means | 0.500 | 0.500 ± 0.000 | 0.250 ± 0.000 ")
    assert found[3].startswith("| digits | 40 | pixels | graph | 0.700 | 0.700 ± 0.100 | ")
    assert found[3].endswith("| 7.0 | 2.00 | 3 |")
    assert found.count("| digits | pixels | +20.0 | +0.0 | +0.0 | +0.0 |") == 1
    assert found.count("| mean |  | +20.0 | +0.0 | +0.0 | +0.0 |") == 1
