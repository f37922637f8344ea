"""What `conr prepare` says of what it packed, and where it looks for the data sets of the paper."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from project import run_conr, write_params

from conr.data.imagenet import TINY
from conr.parameters import Prepare, PrepareStage
from conr.progress import silent
from stages import prepare

PACKED = "1,797 images of 8×8 pixels from scikit-learn's digits in artifacts/store"
LABELLED = "1,797 labels of 10 classes, for scores only"


def summary(**settings: object) -> list[str]:
    """Pack into the current folder; returns the lines of the summary."""
    defaults = {"source": "digits", "labels": "dataset", "image_size": 8}
    return prepare.run(PrepareStage(prepare=Prepare.model_validate(defaults | settings)), silent).splitlines()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def test_all_images_are_trained_and_scored_on_without_a_word(here: Path) -> None:
    assert summary() == [PACKED, LABELLED]
    assert summary(labels="none") == [PACKED]


def test_a_held_out_part_is_counted(here: Path) -> None:
    assert summary(protocol="held-out") == [PACKED, "1,438 to train on, 359 to score", LABELLED]


@pytest.mark.parametrize("protocol", ["all", "held-out"])
def test_a_long_tail_names_its_largest_and_its_smallest_class(here: Path, protocol: str) -> None:
    lines = summary(imbalance=10.0, protocol=protocol)
    manifest = json.loads((here / "artifacts/store/manifest.json").read_text())
    sizes = Counter(manifest["class_names"][label] for label in manifest["labels"][: manifest["train_count"]])
    (largest, most), *_, (smallest, fewest) = sizes.most_common()
    assert lines[0].startswith(f"{manifest['count']:,} images")
    assert lines[-1] == f"long tail: {most:,} images of {largest} to train on, {fewest:,} of {smallest}"
    assert (largest, smallest) == ("0", "9")
    assert most == pytest.approx(10 * fewest, rel=0.05)
    if protocol == "held-out":
        assert lines[1] == f"{manifest['train_count']:,} to train on, 359 to score"


def test_skipped_files_are_counted_and_the_first_three_named(here: Path) -> None:
    (here / "photos").mkdir()
    for number in range(5):
        (here / f"photos/{number}.txt").touch()
        Image.fromarray(np.full((9, 9, 3), 40 * number, dtype=np.uint8)).save(here / f"photos/{number}.png")
    lines = summary(source="folder", path="photos", labels="none")
    assert lines[0] == "5 images of 8×8 pixels from photos in artifacts/store"
    assert lines[1] == "5 files skipped; artifacts/store/manifest.json lists them with the reason:"
    assert [line.partition(":")[0] for line in lines[2:]] == ["  0.txt", "  1.txt", "  2.txt"]


WORDS = {"n01443537": "goldfish, Carassius auratus", "n02124075": "Egyptian cat"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with a tiny Tiny-ImageNet in data, as the repository that DVC_ROOT names."""
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


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A temporary copy without data sets, as DVC makes one for a queued experiment."""
    folder = tmp_path / "copy"
    folder.mkdir()
    write_params(folder, {"prepare": {"source": "tiny-imagenet"}})
    return folder


def test_a_data_set_is_found_in_the_repository_from_a_copy_that_dvc_made(
    repository: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    without = run_conr(copy, "prepare")
    assert without.returncode == 2
    assert f"prepare.root: data does not hold the folder {TINY}" in without.stderr
    monkeypatch.setenv("DVC_ROOT", str(repository))
    result = run_conr(copy, "prepare")
    assert result.returncode == 0, result.stderr
    assert "6 images of 8×8 pixels from Tiny-ImageNet in artifacts/store" in result.stdout
    assert (copy / "artifacts/store").is_dir()
    assert not (repository / "artifacts").exists(), "the images stay where they are, the store goes into the copy"
    assert json.loads((copy / "artifacts/store/manifest.json").read_text())["class_names"] == [
        "Egyptian cat",
        "goldfish",
    ]


def test_an_absolute_root_and_one_in_the_home_folder_do_not_depend_on_dvc(
    repository: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HOME", str(repository))
    for root in (str(repository / "data"), "~/data"):
        result = run_conr(copy, "prepare", "--root", root)
        assert result.returncode == 0, result.stderr
