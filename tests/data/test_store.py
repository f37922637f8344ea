"""Packing images into a store, and opening it again: nothing lost, nothing out of order, nothing half-written."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conr.data import reading
from conr.data.items import Item, Source
from conr.data.opening import UnreadableImageError
from conr.data.pack import pack
from conr.data.sources import open_source
from conr.data.store import open_store
from conr.errors import UserError
from conr.files import ABANDONED
from conr.parameters import Prepare

SIZE = 5
SETTINGS = Prepare(image_size=SIZE)


def image(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def broken() -> NDArray[np.uint8]:
    raise UnreadableImageError("torn in two")


def source(
    labels: Sequence[str | None], torn: Sequence[int] = (), train_count: int | None = None, score_start: int = 0
) -> Source:
    """A source of one item a label, some of which cannot be read; all are trained on and scored by default."""
    items = [
        Item(f"file-{number}", label, broken if number in torn else partial(image, number))
        for number, label in enumerate(labels)
    ]
    train_count = len(items) if train_count is None else train_count
    return Source("a test", items, train_count, score_start, [("notes.txt", "not an image")])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Round trip


def test_what_was_packed_comes_back(tmp_path: Path) -> None:
    manifest = pack(source(["cat", None, "ant", "cat"]), SETTINGS, tmp_path / "store")
    store = open_store(tmp_path / "store")
    expected = np.stack([image(number) for number in range(4)])
    np.testing.assert_array_equal(store.images, expected)
    assert store.images.dtype == np.uint8
    assert store.labels is not None
    assert store.labels.tolist() == [1, -1, 0, 1]
    assert store.manifest == manifest
    assert manifest.class_names == ["ant", "cat"]
    assert manifest.files == ["file-0", "file-1", "file-2", "file-3"]
    assert (manifest.count, manifest.image_size, manifest.fit, manifest.source) == (4, SIZE, "crop", "a test")
    assert manifest.skipped == [("notes.txt", "not an image")]


def test_the_checksum_is_that_of_the_pixels(tmp_path: Path) -> None:
    pack(source([None] * 7), SETTINGS, tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert store.manifest.checksum == hashlib.sha256(np.asarray(store.images).tobytes()).hexdigest()


def test_mean_and_deviation_are_those_of_numpy(tmp_path: Path) -> None:
    manifest = pack(source([None] * 7), SETTINGS, tmp_path / "store")
    scaled = np.stack([image(number) for number in range(7)]) / 255
    np.testing.assert_allclose(manifest.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(manifest.std, scaled.std(axis=(0, 1, 2)), rtol=1e-9)


def test_a_channel_of_one_value_does_not_get_a_deviation_of_zero(tmp_path: Path) -> None:
    item = Item("a", None, lambda: np.zeros((SIZE, SIZE, 3), dtype=np.uint8))
    black = Source("black", [item], train_count=1, score_start=0)
    manifest = pack(black, SETTINGS, tmp_path / "store")
    assert manifest.mean == [0, 0, 0]
    assert manifest.std == pytest.approx([1 / 255] * 3)


def test_without_labels_there_are_none(tmp_path: Path) -> None:
    manifest = pack(source([None, None]), SETTINGS, tmp_path / "store")
    assert manifest.labels is None
    assert manifest.class_names == []
    assert open_store(tmp_path / "store").labels is None


def test_labels_of_broken_images_only_are_none(tmp_path: Path) -> None:
    manifest = pack(source(["cat", None, None], torn=[0]), Prepare(image_size=SIZE, max_broken=0.5), tmp_path / "store")
    assert manifest.labels is None


def test_order_is_kept_over_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 4)
    labels = [f"class {number % 3}" for number in range(11)]
    manifest = pack(source(labels, torn=[5]), SETTINGS, tmp_path / "store")
    kept = [number for number in range(11) if number != 5]
    store = open_store(tmp_path / "store")
    assert manifest.files == [f"file-{number}" for number in kept]
    assert store.labels is not None
    assert store.labels.tolist() == [number % 3 for number in kept]
    np.testing.assert_array_equal(store.images, np.stack([image(number) for number in kept]))
    assert manifest.checksum == hashlib.sha256(np.asarray(store.images).tobytes()).hexdigest()


def test_more_images_than_one_chunk_really_holds(tmp_path: Path) -> None:
    count = reading.CHUNK + 3
    pack(source([None] * count), SETTINGS, tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert store.manifest.files == [f"file-{number}" for number in range(count)]
    np.testing.assert_array_equal(store.images, np.stack([image(number) for number in range(count)]))


def test_two_packs_are_equal_to_the_byte(tmp_path: Path) -> None:
    for name in ("first", "second"):
        pack(source(["b", "a", None] * 5, torn=[3]), SETTINGS, tmp_path / name)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert contents(tmp_path / "first").keys() == {"images.npy", "manifest.json"}


def test_a_store_replaces_the_one_before(tmp_path: Path) -> None:
    pack(source([None] * 6), SETTINGS, tmp_path / "store")
    (tmp_path / "store/left over").touch()
    pack(source([None] * 2), SETTINGS, tmp_path / "store")
    assert open_store(tmp_path / "store").manifest.count == 2
    assert contents(tmp_path / "store").keys() == {"images.npy", "manifest.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_what_a_killed_run_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    for name, age in (("store.tmp", 2), ("store.1f.tmp", 2), ("store.2e.tmp", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "images.npy").write_bytes(b"half")
        for path in (tmp_path / name / "images.npy", tmp_path / name):
            os.utime(path, (time.time() - age * ABANDONED,) * 2)
    pack(source([None] * 2), SETTINGS, tmp_path / "store")
    assert open_store(tmp_path / "store").manifest.count == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "store.2e.tmp"]


def test_a_real_folder_is_packed(tmp_path: Path) -> None:
    for number, name in enumerate(["ant/a.png", "cat/b.png", "cat/c.png"]):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(number)).save(tmp_path / "images" / name)
    (tmp_path / "images/cat/torn.png").write_bytes(b"not a picture")
    settings = Prepare(path=str(tmp_path / "images"), labels="folder", image_size=SIZE, max_broken=0.25)
    manifest = pack(open_source(settings), settings, tmp_path / "store")
    np.testing.assert_array_equal(open_store(tmp_path / "store").images, np.stack([image(n) for n in range(3)]))
    assert manifest.files == ["ant/a.png", "cat/b.png", "cat/c.png"]
    assert manifest.labels == [0, 1, 1]
    ((file, reason),) = manifest.skipped
    assert file == "cat/torn.png"
    assert "not an image" in reason


def test_a_store_can_be_indexed_without_being_changed_on_disk(tmp_path: Path) -> None:
    pack(source([None] * 2), SETTINGS, tmp_path / "store")
    before = contents(tmp_path / "store")
    open_store(tmp_path / "store").images[:] = 0
    assert contents(tmp_path / "store") == before


# What is trained on, what is scored


def test_everything_is_trained_on_and_scored_under_protocol_all(tmp_path: Path) -> None:
    manifest = pack(source(["cat", None, "ant"]), Prepare(source="digits", image_size=SIZE), tmp_path / "store")
    assert (manifest.train_count, manifest.score_start) == (3, 0)
    assert (manifest.dataset, manifest.protocol, manifest.imbalance) == ("digits", "all", 1.0)
    store = open_store(tmp_path / "store")
    np.testing.assert_array_equal(store.training_images, store.images)
    assert store.labels is not None
    assert store.training_labels is not None
    assert store.training_labels.tolist() == store.labels.tolist()
    assert store.scored == slice(0, None)


def test_the_store_knows_its_parts(tmp_path: Path) -> None:
    labels = ["b", "a", "b", "a", "c"]
    settings = Prepare(source="cifar10", protocol="held-out", imbalance=3.0, image_size=SIZE)
    pack(source(labels, train_count=3, score_start=3), settings, tmp_path / "store")
    store = open_store(tmp_path / "store")
    manifest = store.manifest
    assert (manifest.dataset, manifest.protocol, manifest.imbalance) == ("cifar10", "held-out", 3.0)
    np.testing.assert_array_equal(store.training_images, np.stack([image(number) for number in range(3)]))
    assert np.shares_memory(store.training_images, store.images)
    assert store.training_labels is not None
    assert store.training_labels.tolist() == [1, 0, 1]
    assert store.labels is not None
    assert store.labels[store.scored].tolist() == [0, 2]
    np.testing.assert_array_equal(store.images[store.scored], np.stack([image(3), image(4)]))


def test_without_labels_there_are_no_training_labels(tmp_path: Path) -> None:
    pack(source([None] * 3, train_count=2, score_start=2), SETTINGS, tmp_path / "store")
    assert open_store(tmp_path / "store").training_labels is None


@pytest.mark.parametrize("chunk", [1, 3, 4, 512])
@pytest.mark.parametrize("torn", [(), (0, 1), (3, 4), (5,), (9, 10), (0, 4, 5, 10)])
def test_parts_and_moments_are_those_of_the_images_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, torn: tuple[int, ...]
) -> None:
    monkeypatch.setattr(reading, "CHUNK", chunk)
    settings = Prepare(image_size=SIZE, protocol="held-out", max_broken=0.5)
    manifest = pack(source(["x"] * 11, torn, train_count=5, score_start=4), settings, tmp_path / "store")
    trained = [number for number in range(5) if number not in torn]
    assert manifest.train_count == len(trained)
    assert manifest.score_start == len([number for number in range(4) if number not in torn])
    scaled = np.stack([image(number) for number in trained]) / 255
    np.testing.assert_allclose(manifest.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(manifest.std, scaled.std(axis=(0, 1, 2)), rtol=1e-9)
    store = open_store(tmp_path / "store")
    kept = [number for number in range(4, 11) if number not in torn]
    np.testing.assert_array_equal(store.images[store.scored], np.stack([image(number) for number in kept]))


@pytest.mark.parametrize(("torn", "purpose"), [([0, 1], "train on"), ([2, 3], "score")])
def test_a_part_of_broken_images_only_is_an_error(tmp_path: Path, torn: list[int], purpose: str) -> None:
    settings = Prepare(image_size=SIZE, protocol="held-out", max_broken=0.5)
    with pytest.raises(UserError, match=rf"^a test: .* {purpose} .*prepare\.protocol: all"):
        pack(source([None] * 4, torn, train_count=2, score_start=2), settings, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_the_moments_of_the_digits_have_not_changed(tmp_path: Path) -> None:
    settings = Prepare(source="digits", labels="dataset", image_size=8)
    manifest = pack(open_source(settings), settings, tmp_path / "store")
    assert manifest.mean == [0.30530871850687963] * 3
    assert manifest.std == [0.3758859119653463] * 3
    assert manifest.checksum == "9b4db4a52cd44d7912d814df3b00d430f197438716221fbf947eb11ab3e55db3"


# Broken images


def test_broken_images_are_left_out_and_listed(tmp_path: Path) -> None:
    manifest = pack(source(["a"] * 10, torn=[2]), SETTINGS, tmp_path / "store")
    assert manifest.count == 9
    assert "file-2" not in manifest.files
    assert manifest.skipped == [("notes.txt", "not an image"), ("file-2", "torn in two")]


def test_too_many_broken_images_are_counted_and_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        pack(source(["a"] * 20, torn=range(8)), SETTINGS, tmp_path / "store")
    message = str(caught.value)
    assert "a test: 8 of 20 images cannot be read (40%); prepare.max_broken accepts 10%" in message
    assert message.endswith("raise it.\n  8 × torn in two; the first: file-0")


def test_broken_images_are_counted_by_reason(tmp_path: Path) -> None:
    def fails(reason: str) -> NDArray[np.uint8]:
        raise UnreadableImageError(reason)

    reasons = ["b", "a", "b", *"cdefg"]
    items = [Item(f"file-{number}", None, partial(fails, reason)) for number, reason in enumerate(reasons)]
    with pytest.raises(UserError) as caught:
        pack(Source("a test", items, train_count=8, score_start=0), SETTINGS, tmp_path / "store")
    lines = str(caught.value).splitlines()
    assert lines[0] == "a test: none of 8 images can be read"
    assert lines[1:3] == ["  2 × b; the first: file-0", "  1 × a; the first: file-1"]
    assert lines[-1] == "  … and 2 other reasons"


def test_too_many_broken_images_leave_the_old_store(tmp_path: Path) -> None:
    pack(source(["a"] * 3), SETTINGS, tmp_path / "store")
    before = contents(tmp_path / "store")
    with pytest.raises(UserError):
        pack(source(["a"] * 20, torn=range(8)), SETTINGS, tmp_path / "store")
    assert contents(tmp_path / "store") == before
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(("torn", "images", "accepted"), [(3, 10, 0.3), (1, 3, 1 / 3), (1, 10, 0.1), (0, 2, 0.0)])
def test_exactly_the_share_that_is_accepted_is_accepted(
    tmp_path: Path, torn: int, images: int, accepted: float
) -> None:
    settings = Prepare(image_size=SIZE, max_broken=accepted)
    manifest = pack(source([None] * images, torn=range(torn)), settings, tmp_path / "store")
    assert manifest.count == images - torn
    with pytest.raises(UserError):
        pack(source([None] * images, torn=range(torn + 1)), settings, tmp_path / "store")


def test_nothing_but_broken_images_is_an_error_whatever_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^a test: none of 4 images can be read\n"):
        pack(source([None] * 4, torn=range(4)), Prepare(image_size=SIZE, max_broken=1.0), tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_another_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails() -> NDArray[np.uint8]:
        raise RuntimeError("a mistake in the code")

    with pytest.raises(RuntimeError, match="a mistake in the code"):
        pack(Source("x", [Item("a", None, fails)], train_count=1, score_start=0), SETTINGS, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def change_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


# Damaged stores


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack(source(["a", "b", None, "a"]), SETTINGS, tmp_path / "store")
    return tmp_path / "store"


def test_a_missing_store_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/store .*conr prepare"):
        open_store(tmp_path / "store")


@pytest.mark.parametrize("size", [0, 50, 128, 200])
def test_truncated_pixels_are_noticed(folder: Path, size: int) -> None:
    path = folder / "images.npy"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"^{folder}/images\.npy .*conr prepare"):
        open_store(folder)


@pytest.mark.parametrize("shape", [b"(4, 5, 5, 3 ", b"(4, 5, 5,.", b"(4, 5, 5))"])
def test_a_damaged_header_is_noticed(folder: Path, shape: bytes) -> None:
    path = folder / "images.npy"
    content = path.read_bytes()
    start = content.index(b"(")
    path.write_bytes(content[:start] + shape + content[start + len(shape) :])
    with pytest.raises(UserError, match=rf"^{folder}/images\.npy .*conr prepare"):
        open_store(folder)


@pytest.mark.parametrize("name", ["images.npy", "manifest.json"])
def test_a_missing_part_is_noticed(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"^{folder}/{name} .*conr prepare"):
        open_store(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"skipped": []}', "null"])
def test_a_manifest_that_is_none_is_noticed(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=rf"^{folder}/manifest\.json .*conr prepare"):
        open_store(folder)


@pytest.mark.parametrize(("key", "value"), [("image_size", 6), ("checksum", "0" * 64)])
def test_a_manifest_of_other_pixels_is_noticed(folder: Path, key: str, value: object) -> None:
    change_manifest(folder, **{key: value})
    with pytest.raises(UserError, match=rf"^{folder}: images\.npy .*conr prepare"):
        open_store(folder)


def test_the_pixels_of_another_store_are_noticed(folder: Path, tmp_path: Path) -> None:
    pack(source(["c", "d", "e", "f"], torn=[0]), Prepare(image_size=SIZE, max_broken=0.5), tmp_path / "other")
    change_manifest(folder, count=3, train_count=3, files=["a", "b", "c"], labels=[0, 1, 0])
    (tmp_path / "other/images.npy").replace(folder / "images.npy")
    with pytest.raises(UserError, match=rf"^{folder}: images\.npy .*checksum.*conr prepare"):
        open_store(folder)


def test_pixels_of_another_type_are_noticed(folder: Path) -> None:
    np.save(folder / "images.npy", np.zeros((4, SIZE, SIZE, 3), dtype=np.float32))
    with pytest.raises(UserError, match=rf"^{folder}: images\.npy .* float32"):
        open_store(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"train_count": 0},
        {"train_count": 5},
        {"train_count": "4"},
        {"score_start": 4},
        {"score_start": -1},
        {"count": 5},
        {"files": ["only one"]},
        {"files": [1, 2, 3, 4]},
        {"files": [{"bytes": "0x"}] * 4},
        {"labels": [0, 1]},
        {"labels": [0, 1, -1, 2]},
        {"labels": [0, 1, -2, 0]},
        {"class_names": ["a", "a"]},
        {"mean": [0.5, 0.5]},
        {"mean": [0.5, 0.5, float("nan")]},
        {"std": [0.0, 0.1, 0.1]},
        {"std": [1e300, 0.1, 0.1]},
        {"imbalance": float("inf")},
        {"checksum": "0"},
        {"blank": [4]},
        {"duplicates": [[0, 1]]},
        {"duplicates": [[9, 1]]},
        {"broken": 7},
        {"more": 1},
    ],
)
def test_a_manifest_that_contradicts_itself_is_noticed(folder: Path, changes: dict[str, object]) -> None:
    change_manifest(folder, **changes)
    with pytest.raises(UserError, match=rf"^{folder}/manifest\.json .*conr prepare"):
        open_store(folder)


def test_a_store_of_an_older_version_is_noticed(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["train_count"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"^{folder}/manifest\.json .*train_count.*conr prepare"):
        open_store(folder)
