"""The parts of the page that show images, made from a store and its clusters."""

from pathlib import Path

import numpy as np
import pytest
from embedded_run import embedded, groups

from conr.data.store import Store, load_manifest, open_store, write_store
from conr.evaluation.evaluate import Evaluation, evaluate_store
from conr.evaluation.plane import nearest_images
from conr.parameters import EvaluateStage
from conr.pipeline import page_parts
from conr.pipeline.evaluate import evaluate
from conr.pipeline.page_parts import Extras, cards, groups_to_check, image_map, skipped_by_reason

FILES = [f"{number:02}.png" for number in range(24)]


@pytest.fixture
def run(tmp_path: Path) -> tuple[Store, Evaluation, Extras]:
    """24 images in three clusters, labeled, with a plane."""
    embeddings = groups([12, 8, 4], noise=0.1)
    workspace, parameters = embedded(tmp_path, embeddings, labels=["a"] * 20 + [""] * 4, files=FILES)
    store = open_store(workspace.store)
    found = evaluate_store(embeddings, store, EvaluateStage.of(parameters), 0)
    positions = np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32)
    return store, found, Extras(embeddings=embeddings, positions=positions)


def test_the_map_holds_every_image_with_its_neighbors(run: tuple[Store, Evaluation, Extras]) -> None:
    store, found, extras = run
    drawn = image_map(found.assignment, store, extras)
    assert drawn is not None
    assert extras.embeddings is not None
    assert drawn.points.tolist() == list(range(24))
    assert list(drawn.files) == FILES
    assert list(drawn.labels or []) == store.label_names
    np.testing.assert_array_equal(drawn.clusters, found.assignment.clusters)
    np.testing.assert_array_equal(drawn.neighbors, nearest_images(extras.embeddings, 8))


def test_of_too_many_images_some_are_drawn_with_neighbors_among_them(
    run: tuple[Store, Evaluation, Extras], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_parts, "MOST_POINTS", 15)
    store, found, extras = run
    drawn = image_map(found.assignment, store, extras)
    assert drawn is not None
    assert extras.positions is not None
    assert len(drawn.points) == 15
    assert (np.diff(drawn.points) > 0).all()
    assert drawn.neighbors.max() < 15
    assert list(drawn.files) == [FILES[image] for image in drawn.points]
    np.testing.assert_array_equal(drawn.positions, extras.positions[drawn.points])
    assert drawn.point_of == {image: point for point, image in enumerate(drawn.points.tolist())}


def test_without_positions_there_is_no_map(run: tuple[Store, Evaluation, Extras]) -> None:
    store, found, _ = run
    assert image_map(found.assignment, store, Extras()) is None


def test_equal_images_are_one_group_with_all_names(run: tuple[Store, Evaluation, Extras], tmp_path: Path) -> None:
    store, found, _ = run
    hidden = {"blank": [5], "duplicates": [(20, 3), (21, 3), (9, 8)], "skipped": []}
    changed = Store(store.images, store.labels, store.manifest.model_copy(update=hidden))
    blank, equal = groups_to_check(found.assignment, changed)
    assert [names for _, names in blank.shown] == [["05.png"]]
    assert [names for _, names in equal.shown] == [["03.png", "20.png", "21.png"], ["08.png", "09.png"]]
    np.testing.assert_array_equal(equal.shown[0][0].pixels, store.images[3])
    assert groups_to_check(found.assignment, store) == []


def test_very_many_blank_images_are_counted(
    run: tuple[Store, Evaluation, Extras], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_parts, "GROUPS", 4)
    store, found, _ = run
    changed = Store(store.images, store.labels, store.manifest.model_copy(update={"blank": list(range(10))}))
    (blank,) = groups_to_check(found.assignment, changed)
    assert len(blank.shown) == 4
    assert blank.more == 6


def test_skipped_files_are_counted_by_reason_the_most_frequent_first(run: tuple[Store, Evaluation, Extras]) -> None:
    skipped = [("a.txt", "no image"), ("b.jpg", "broken"), ("c.txt", "no image")]
    rows = skipped_by_reason(run[0].manifest.model_copy(update={"skipped": skipped}))
    assert [(row.reason, row.count, row.first) for row in rows] == [("no image", 2, "a.txt"), ("broken", 1, "b.jpg")]


def test_cards_know_their_images_and_labels(run: tuple[Store, Evaluation, Extras]) -> None:
    store, found, _ = run
    shown = cards(found, store, 4)
    assert [card.size for card in shown] == [12, 8, 4]
    assert [(card.label, card.label_share) for card in shown] == [("a", 1.0), ("a", 1.0), (None, 0.0)]
    for card, members in zip(shown, found.typical, strict=True):
        assert [sample.image for sample in card.typical] == members[:4]
        assert len(card.borderline) == 2


def test_the_page_of_a_run_has_a_map_and_what_is_to_be_checked(tmp_path: Path) -> None:
    workspace, parameters = embedded(tmp_path, groups([12, 8, 4], noise=0.1), files=FILES)
    hidden = {"blank": [1], "duplicates": [(20, 3)], "skipped": [("notes.txt", "no image by its name")]}
    write_store(workspace.store, load_manifest(workspace.store).model_copy(update=hidden))
    evaluate(workspace, parameters)
    page = workspace.report.read_text()
    assert 'id="map-data"' in page
    assert page.count('<script type="text/plain" id="sheet-') == 1
    assert "Images of a single color" in page
    assert "Images that equal another one" in page
    assert "<td>no image by its name</td><td>1</td><td>notes.txt</td>" in page
