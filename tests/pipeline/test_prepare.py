"""What `conr prepare` says of what it packed, and where it looks for the data sets of the paper."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from project import tiny

from conr.data.imagenet import TINY
from conr.data.store import Manifest, load_manifest
from conr.errors import UserError
from conr.observer import SILENT
from conr.parameters import Prepare, PrepareStage
from conr.pipeline.prepare import prepare
from conr.pipeline.workspace import Workspace
from conr.stages import prepare as command

LABELED = "1,797 labels of 10 classes, for scores only"


def summary(workspace: Workspace, **settings: object) -> list[str]:
    """Pack into a workspace; returns the lines of the summary."""
    defaults = {"source": "digits", "labels": "dataset", "image_size": 8}
    return command.run(
        workspace, PrepareStage(prepare=Prepare.model_validate(defaults | settings)), SILENT
    ).splitlines()


@pytest.fixture
def empty(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path)


def test_all_images_are_trained_and_scored_on_without_a_word(empty: Workspace) -> None:
    packed = f"1,797 images of 8×8 pixels from scikit-learn's digits in {empty.store}"
    assert summary(empty) == [packed, LABELED]
    assert summary(empty, labels="none") == [packed]


def test_a_held_out_part_is_counted(empty: Workspace) -> None:
    assert summary(empty, protocol="held-out")[1:] == ["1,438 to train on, 359 to score", LABELED]


@pytest.mark.parametrize("protocol", ["all", "held-out"])
def test_a_long_tail_names_its_largest_and_its_smallest_class(empty: Workspace, protocol: str) -> None:
    lines = summary(empty, imbalance=10.0, protocol=protocol)
    manifest = json.loads((empty.store / "manifest.json").read_text())
    sizes = Counter(manifest["class_names"][label] for label in manifest["labels"][: manifest["train_count"]])
    (largest, most), *_, (smallest, fewest) = sizes.most_common()
    assert lines[0].startswith(f"{manifest['count']:,} images")
    assert lines[-1] == f"long tail: {most:,} images of {largest} to train on, {fewest:,} of {smallest}"
    assert (largest, smallest) == ("0", "9")
    assert most == pytest.approx(10 * fewest, rel=0.05)
    if protocol == "held-out":
        assert lines[1] == f"{manifest['train_count']:,} to train on, 359 to score"


def test_skipped_files_are_counted_and_the_first_three_named(empty: Workspace, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(5):
        (photos / f"{number}.txt").touch()
        Image.fromarray(np.full((9, 9, 3), 40 * number, dtype=np.uint8)).save(photos / f"{number}.png")
    lines = summary(empty, source="folder", path=str(photos), labels="none")
    assert lines[0] == f"5 images of 8×8 pixels from {photos} in {empty.store}"
    assert lines[1] == f"5 files or folders skipped (5 .txt); {empty.store}/manifest.json lists them all:"
    assert [line.partition(":")[0] for line in lines[2:5]] == ["  0.txt", "  1.txt", "  2.txt"]


WORDS = {"n01443537": "goldfish, Carassius auratus", "n02124075": "Egyptian cat"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with a tiny Tiny-ImageNet in data."""
    folder = tmp_path / "repository"
    tree = folder / "data" / TINY
    generator = np.random.default_rng(0)
    for wnid in WORDS:
        (tree / "train" / wnid / "images").mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tree / f"train/{wnid}/images/{wnid}_{number}.JPEG", "JPEG")
    (tree / "words.txt").write_text("".join(f"{wnid}\t{words}\n" for wnid, words in WORDS.items()))
    return folder


def packed_from(root: str, workspace: Workspace) -> Manifest:
    """Pack the data set that a root holds."""
    parameters = tiny({"prepare.source": "tiny-imagenet", "prepare.root": root})
    return prepare(workspace, PrepareStage.of(parameters))


def test_a_data_set_is_found_in_the_repository_from_a_copy_that_dvc_made(repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with pytest.raises(UserError, match=f"prepare.root: {copy}/data does not hold the folder {TINY}"):
        packed_from("data", Workspace.at(copy))
    manifest = packed_from("data", Workspace(copy, repository / ".conr"))
    assert (manifest.count, manifest.source) == (6, "Tiny-ImageNet")
    assert manifest.class_names == ["Egyptian cat", "goldfish"]
    assert load_manifest(copy / "artifacts/store") == manifest
    assert not (repository / "artifacts").exists(), "the images stay where they are, the store goes into the copy"


def test_an_absolute_root_and_one_in_the_home_folder_do_not_depend_on_the_workspace(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(repository))
    for root in (str(repository / "data"), "~/data"):
        assert packed_from(root, Workspace(tmp_path / "copy", tmp_path / "elsewhere/.conr")).count == 6
