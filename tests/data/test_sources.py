"""Which images a source finds, in which order, with which labels; and what it says when it cannot."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from conr.data.folders import ALREADY_SEARCHED
from conr.data.items import NO_SUFFIX, OTHER_SUFFIX, Source
from conr.data.sources import NEITHER_TRAIN_NOR_TEST, array_source, open_source
from conr.errors import UserError
from conr.parameters import Prepare


def write_images(root: Path, *files: str) -> None:
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (number, 0, 0)).save(root / file)


def folder(root: Path, **settings: object) -> Source:
    return open_source(Prepare.model_validate({"source": "folder", "path": str(root), "image_size": 6, **settings}))


def labels(source: Source) -> dict[str, str | None]:
    return {item.file: item.label for item in source.items}


# Digits


def test_digits_are_those_of_scikit_learn() -> None:
    source = open_source(Prepare(source="digits", labels="dataset", image_size=8))
    bunch = load_digits()
    assert len(source.items) == 1797
    assert [item.label for item in source.items] == [str(target) for target in bunch.target]
    for number in range(0, 1797, 50):
        pixels = source.items[number].read()
        assert pixels.shape == (8, 8, 3)
        assert pixels.dtype == np.uint8
        np.testing.assert_allclose(pixels[:, :, 0], bunch.images[number] * (255 / 16), atol=0.5)
        assert (pixels == pixels[:, :, :1]).all()


def test_digits_are_enlarged_to_the_size_asked_for() -> None:
    item = open_source(Prepare(source="digits", image_size=16)).items[0]
    pixels = item.read()
    assert pixels.shape == (16, 16, 3)
    small = load_digits().images[0] * (255 / 16)
    assert np.abs(pixels.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3, 4)) - small).mean() < 20


def test_digits_have_no_labels_unless_asked_for() -> None:
    source = open_source(Prepare(source="digits", labels="none"))
    assert {item.label for item in source.items} == {None}


# Arrays


def noise(count: int, height: int = 6, width: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_images_in_memory_are_items_in_their_order_with_their_labels_as_text() -> None:
    images = noise(3)
    source = array_source(images, [2, 0, 2], 6)
    assert [item.label for item in source.items] == ["2", "0", "2"]
    assert [item.file for item in source.items] == ["000000", "000001", "000002"]
    assert (source.train_count, source.score_start, source.skipped) == (3, 0, [])
    np.testing.assert_array_equal(np.stack([item.read() for item in source.items]), images)


def test_images_in_memory_are_resized_and_need_no_labels() -> None:
    images = np.broadcast_to(np.uint8([10, 20, 30]), (2, 4, 9, 3))
    source = array_source(images, None, 5)
    assert [item.label for item in source.items] == [None, None]
    assert all((item.read() == np.broadcast_to([10, 20, 30], (5, 5, 3))).all() for item in source.items)


@pytest.mark.parametrize(
    "images", [noise(2)[0], noise(2)[..., :1], noise(2).astype(np.float32), noise(2).transpose(0, 3, 1, 2)]
)
def test_an_array_of_another_shape_or_type_is_named(images: NDArray[Any]) -> None:
    with pytest.raises(UserError, match=rf"^images .*{re.escape(str(images.shape))} {images.dtype}"):
        array_source(images, None, 6)


def test_another_number_of_labels_is_named() -> None:
    with pytest.raises(UserError, match=r"3 labels .*2 images"):
        array_source(noise(2), [1, 2, 3], 6)


def test_digits_have_names_of_their_own() -> None:
    names = [item.file for item in open_source(Prepare(source="digits")).items]
    assert len(set(names)) == 1797
    assert names == sorted(names)


@pytest.mark.parametrize("kind", ["folder", "parent", "csv"])
def test_digits_refuse_the_labels_of_a_folder(kind: str) -> None:
    with pytest.raises(UserError, match=rf"^prepare\.labels: {kind} .*prepare\.source: digits"):
        open_source(Prepare.model_validate({"source": "digits", "labels": kind}))


def test_all_digits_are_trained_on_and_scored() -> None:
    source = open_source(Prepare(source="digits"))
    assert (source.train_count, source.score_start) == (1797, 0)


def test_the_last_fifth_of_the_digits_is_held_out() -> None:
    source = open_source(Prepare(source="digits", labels="dataset", protocol="held-out"))
    assert (source.train_count, source.score_start) == (1438, 1438)
    assert [item.file for item in source.items] == [f"digit-{number:04d}" for number in range(1797)]
    assert [item.label for item in source.items] == [str(target) for target in load_digits().target]


# Files of a folder


def test_a_folder_is_searched_at_any_depth_in_sorted_order(tmp_path: Path) -> None:
    write_images(tmp_path, "b.png", "a/z.png", "a/b/c/deep.jpg", "a.png", "C/x.BMP", "a/b.webp")
    files = [item.file for item in folder(tmp_path).items]
    assert files == sorted(files)
    assert set(files) == {"b.png", "a/z.png", "a/b/c/deep.jpg", "a.png", "C/x.BMP", "a/b.webp"}
    assert [item.file for item in folder(tmp_path).items] == files


def test_an_item_reads_its_own_file(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b/c.png", "b/d.png")
    reds = {item.file: int(item.read()[0, 0, 0]) for item in folder(tmp_path).items}
    assert reds == {"a.png": 0, "b/c.png": 1, "b/d.png": 2}


def test_items_are_made_square_as_asked(tmp_path: Path) -> None:
    Image.new("RGB", (6, 3), (255, 255, 255)).save(tmp_path / "wide.png")
    assert folder(tmp_path, fit="crop").items[0].read().min() == 255
    assert folder(tmp_path, fit="pad").items[0].read().min() == 0


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    write_images(tmp_path, "seen.png", ".hidden.png", ".cache/a.png", "b/.thumbnails/c.png")
    (tmp_path / ".DS_Store").touch()
    source = folder(tmp_path)
    assert [item.file for item in source.items] == ["seen.png"]
    assert source.skipped == []


def test_what_is_no_image_is_listed_with_the_reason(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/film.mp4").write_text("x")
    (tmp_path / "no_suffix").write_text("x")
    source = folder(tmp_path)
    others = [(file, OTHER_SUFFIX) for file in ("notes.txt", "sub/film.mp4")]
    assert source.skipped == [("no_suffix", NO_SUFFIX), *others]
    assert [item.file for item in source.items] == ["a.png"]


def test_linked_folders_are_searched_too(tmp_path: Path) -> None:
    write_images(tmp_path / "disk", "c.png", "deep/d.png")
    write_images(tmp_path / "photos", "a.png")
    (tmp_path / "photos/b").symlink_to(tmp_path / "disk")
    source = folder(tmp_path / "photos")
    assert [item.file for item in source.items] == ["a.png", "b/c.png", "b/deep/d.png"]
    assert int(source.items[2].read()[0, 0, 0]) == 1
    assert source.skipped == []


def test_no_folder_is_searched_twice_or_without_end(tmp_path: Path) -> None:
    write_images(tmp_path / "disk", "e.png")
    write_images(tmp_path / "photos", "m/a.png")
    for link, target in (("a", "m"), ("m/loop", ".."), ("one", "../disk"), ("two", "../disk"), ("up", "..")):
        (tmp_path / "photos" / link).symlink_to(target)
    source = folder(tmp_path / "photos")
    assert [item.file for item in source.items] == ["m/a.png", "one/e.png"]
    assert source.skipped == [(file, ALREADY_SEARCHED) for file in ("a", "m/loop", "two", "up/disk", "up/photos")]


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of folders that nobody may read, not even root."""
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    return "locked"


def test_folders_that_cannot_be_read_are_listed_with_the_reason(tmp_path: Path, locked: str) -> None:
    write_images(tmp_path, "a.png", f"b/{locked}/c.png", "d/e.png")
    source = folder(tmp_path)
    assert [item.file for item in source.items] == ["a.png", "d/e.png"]
    assert source.skipped == [(f"b/{locked}", "a folder that cannot be read (Permission denied)")]


def test_where_nothing_else_is_left_the_folders_that_cannot_be_read_are_named(tmp_path: Path, locked: str) -> None:
    write_images(tmp_path, f"{locked}/c.png")
    message = rf"^prepare\.path: {tmp_path} .* 1 other files\n  {locked}: .*\(Permission denied"
    with pytest.raises(UserError, match=message):
        folder(tmp_path)
    with pytest.raises(UserError, match=rf"^prepare\.path: {tmp_path}/{locked} .*\(Permission denied\)"):
        folder(tmp_path / locked)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^prepare\.path: {tmp_path}/nowhere does not exist"):
        folder(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    with pytest.raises(UserError, match=rf"^prepare\.path: {tmp_path}/a\.png is not"):
        folder(tmp_path / "a.png")


def test_a_folder_without_images_is_named_with_the_number_of_other_files(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", ".hidden.png"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"^prepare\.path: {tmp_path} .* 2 other files"):
        folder(tmp_path)


# Labels of a folder


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    write_images(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "loose.png")
    return tmp_path


def test_without_labels_there_are_none(nested: Path) -> None:
    assert set(labels(folder(nested)).values()) == {None}


def test_labels_of_the_first_level(nested: Path) -> None:
    assert labels(folder(nested, labels="folder")) == {
        "loose.png": None,
        "test/cat/3.png": "test",
        "train/cat/1.png": "train",
        "train/dog/2.png": "train",
    }


def test_labels_of_the_parent(nested: Path) -> None:
    assert labels(folder(nested, labels="parent")) == {
        "loose.png": None,
        "test/cat/3.png": "cat",
        "train/cat/1.png": "cat",
        "train/dog/2.png": "dog",
    }


@pytest.mark.parametrize("kind", ["folder", "parent"])
def test_labels_from_folders_need_folders(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path, "a.png", "b.png")
    with pytest.raises(UserError, match=r"^prepare\.labels: no image .* subfolder"):
        folder(tmp_path, labels=kind)


def test_a_folder_has_no_labels_of_its_own(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    with pytest.raises(UserError, match=r"^prepare\.labels: dataset .*prepare\.source: folder"):
        folder(tmp_path, labels="dataset")


# Labels of a table


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_labels_the_files_that_it_names(nested: Path, encoding: str) -> None:
    table = "file,label,note\ntrain/cat/1.png,Käfer,x\nloose.png,moth,\ntest/cat/3.png,,\ngone.png,moth,\n"
    (nested / "labels.csv").write_text(table, encoding=encoding)
    source = folder(nested, labels="csv")
    assert labels(source) == {
        "loose.png": "moth",
        "test/cat/3.png": None,
        "train/cat/1.png": "Käfer",
        "train/dog/2.png": None,
    }
    assert source.skipped == []  # the table itself is not a file that was passed over


def test_columns_may_come_in_any_order_and_lines_end_in_any_way(nested: Path) -> None:
    (nested / "sub").mkdir()
    (nested / "sub/mine.csv").write_bytes(b'label,x,file\r\n"a, b",1,loose.png\r\n')
    assert labels(folder(nested, labels="csv", labels_file="sub/mine.csv"))["loose.png"] == "a, b"


@pytest.mark.parametrize("head", ["", "name,class\n", "file label\n", "file\n"])
def test_a_table_without_its_columns_is_named(nested: Path, head: str) -> None:
    (nested / "labels.csv").write_text(head + "loose.png,moth\n")
    with pytest.raises(UserError, match=rf"^{nested}/labels\.csv: .*columns file and label"):
        folder(nested, labels="csv")


@pytest.mark.parametrize(
    "content", ["file,label\nloose.png,Käfer\n".encode("latin-1"), b"file,label\n" + b"x" * 200_000]
)
def test_a_table_that_cannot_be_read_is_named(nested: Path, content: bytes) -> None:
    (nested / "labels.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"^{nested}/labels\.csv[:,] .*UTF-8"):
        folder(nested, labels="csv")


def test_a_missing_table_is_named(nested: Path) -> None:
    with pytest.raises(UserError, match=rf"^prepare\.labels_file: {nested}/labels\.csv does not exist"):
        folder(nested, labels="csv")


@pytest.mark.parametrize("absolute", [False, True])
def test_a_table_outside_the_folder_is_refused(tmp_path: Path, absolute: bool) -> None:
    write_images(tmp_path / "images", "a.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png,cat\n")
    outside = str(tmp_path / "labels.csv") if absolute else "../labels.csv"
    with pytest.raises(UserError, match=r"^prepare\.labels_file: .*labels\.csv .*prepare\.path"):
        folder(tmp_path / "images", labels="csv", labels_file=outside)


def test_a_table_that_matches_no_image_is_named(nested: Path) -> None:
    (nested / "labels.csv").write_text("file,label\nelsewhere/1.png,cat\n")
    with pytest.raises(UserError, match=r"^prepare\.labels: no image .*labels\.csv .*elsewhere/1\.png"):
        folder(nested, labels="csv")


# Held-out images of a folder


def test_all_images_of_a_folder_are_trained_on_and_scored(nested: Path) -> None:
    source = folder(nested)
    assert (len(source.items), source.train_count, source.score_start) == (4, 4, 0)


def test_the_folder_train_comes_before_the_folder_test(nested: Path) -> None:
    source = folder(nested, protocol="held-out", labels="parent")
    assert [(item.file, item.label) for item in source.items] == [
        ("train/cat/1.png", "cat"),
        ("train/dog/2.png", "dog"),
        ("test/cat/3.png", "cat"),
    ]
    assert (source.train_count, source.score_start) == (2, 2)
    assert [int(item.read()[0, 0, 0]) for item in source.items] == [0, 1, 2]


def test_images_beside_train_and_test_are_listed_with_the_reason(nested: Path) -> None:
    (nested / "notes.txt").touch()
    source = folder(nested, protocol="held-out")
    assert source.skipped == [("loose.png", NEITHER_TRAIN_NOR_TEST), ("notes.txt", OTHER_SUFFIX)]


@pytest.mark.parametrize("kind", ["folder", "parent"])
def test_train_and_test_are_no_classes(nested: Path, kind: str) -> None:
    write_images(nested, "train/unsorted.png", "test/dog/poodle/4.png")
    found = labels(folder(nested, protocol="held-out", labels=kind))
    assert found == {
        "train/cat/1.png": "cat",
        "train/dog/2.png": "dog",
        "train/unsorted.png": None,
        "test/cat/3.png": "cat",
        "test/dog/poodle/4.png": "dog" if kind == "folder" else "poodle",
    }


def test_a_table_may_label_both_parts(nested: Path) -> None:
    (nested / "labels.csv").write_text("file,label\ntrain/cat/1.png,moth\ntest/cat/3.png,ant\n")
    source = folder(nested, protocol="held-out", labels="csv")
    assert [item.label for item in source.items] == ["moth", None, "ant"]
    assert source.skipped == [("loose.png", NEITHER_TRAIN_NOR_TEST)]


def test_any_other_folder_of_images_is_an_error(nested: Path) -> None:
    write_images(nested, "val/cat/4.png")
    message = r"^prepare\.protocol: held-out .* found test, train, val"
    with pytest.raises(UserError, match=message):
        folder(nested, protocol="held-out")


def test_a_folder_without_images_may_have_any_name(nested: Path) -> None:
    (nested / "docs").mkdir()
    (nested / "docs/notes.txt").touch()
    assert len(folder(nested, protocol="held-out").items) == 3


@pytest.mark.parametrize(("file", "found"), [("train/1.png", "train"), ("1.png", "no folder with images")])
def test_both_parts_must_be_there(tmp_path: Path, file: str, found: str) -> None:
    write_images(tmp_path, file)
    with pytest.raises(UserError, match=rf"^prepare\.protocol: held-out .* found {found}\..*protocol: all"):
        folder(tmp_path, protocol="held-out")
