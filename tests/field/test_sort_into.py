"""Copies by cluster: whole under their name or not there, resumed by the same command, beside nothing else."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from project import table

from conr.embedding.session import INPUT, OUTPUT, open_session
from conr.errors import UserError
from conr.files import save_array, sha256_of
from conr.pipeline.assign import assign_folder
from conr.pipeline.records import write_record
from conr.pipeline.workspace import Workspace

NAMES = ["a.png", "deep/b.png", "deep/c.png", "d" * 251 + ".png"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images of different brightness."""
    for number, name in enumerate(NAMES):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 60 * (number + 1), (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def run(encoder: Path, photos: Path, tmp_path: Path) -> Workspace:
    """A finished run whose two centroids are the first two images."""
    workspace = Workspace.at(tmp_path / "run")
    workspace.encoder.parent.mkdir(parents=True)
    shutil.copy(encoder, workspace.encoder)
    pixels = np.stack([np.asarray(Image.open(photos / name)) for name in NAMES[:2]])
    save_array(workspace.centroids, open_session(encoder, "cpu").run([OUTPUT], {INPUT: pixels})[0])
    write_record(workspace.results, [workspace.centroids], [0], {"encoder": sha256_of(encoder)})
    return workspace


def sort(run: Workspace, photos: Path, target: Path) -> None:
    assign_folder(run, photos, target.parent / "table.csv", target, "cpu")


def sorted_files(target: Path) -> dict[str, bytes]:
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def expected(photos: Path, target: Path) -> dict[str, bytes]:
    rows = table(target.parent / "table.csv")
    return {f"{row['cluster']}/{row['file']}": (photos / row["file"]).read_bytes() for row in rows}


@pytest.mark.parametrize("after", range(len(NAMES)))
def test_a_full_disk_leaves_whole_copies_only_and_the_same_call_adds_the_others(
    after: int, run: Workspace, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, copied = tmp_path / "sorted", []
    copy = shutil.copy2

    def filling(source: Path, destination: Path) -> Any:
        if len(copied) == after:
            Path(destination).write_bytes(source.read_bytes()[:20])
            raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(destination))
        copied.append(source)
        return copy(source, destination)

    monkeypatch.setattr(shutil, "copy2", filling)
    with pytest.raises(OSError, match="No space left") as error:
        sort(run, photos, target)
    assert Path(error.value.filename).is_relative_to(target), "what is full is where the copies go"
    found = sorted_files(target)
    whole = expected(photos, target)
    assert len(found) == after
    assert found.items() <= whole.items()

    monkeypatch.setattr(shutil, "copy2", lambda *paths: copied.append(paths[0]) or copy(*paths))
    sort(run, photos, target)
    assert sorted_files(target) == whole
    assert len(copied) == len(NAMES), "what was there was copied again"


def test_what_a_killed_run_left_is_removed_and_a_changed_image_copied_again(
    run: Workspace, photos: Path, tmp_path: Path
) -> None:
    target = tmp_path / "sorted"
    sort(run, photos, target)
    (target / "0" / f"{'0f' * 16}.tmp").write_bytes(b"half")
    Image.fromarray(np.zeros((9, 8, 3), dtype=np.uint8)).save(photos / "a.png")
    before = expected(photos, target)
    cluster = next(name for name in before if name.endswith("/a.png"))
    if cluster != "0/a.png":
        pytest.skip("the changed image is in another cluster")
    sort(run, photos, target)
    assert sorted_files(target) == expected(photos, target)


@pytest.mark.parametrize("other", ["notes.txt", "0/notes.txt", "0/a.png.tmp", "1/a.png", "2/a.png", "x/a.png"])
def test_a_folder_with_other_files_is_refused_and_nothing_copied(
    other: str, run: Workspace, photos: Path, tmp_path: Path
) -> None:
    target = tmp_path / "sorted"
    (target / other).parent.mkdir(parents=True)
    (target / other).write_text("mine")
    with pytest.raises(UserError, match=f"--sort-into {target} holds something else than these copies.*: {other};"):
        sort(run, photos, target)
    assert sorted_files(target) == {other: b"mine"}


def test_a_target_on_which_nothing_can_be_renamed_leaves_no_temporary_file(
    run: Workspace, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def refused(path: Path, target: Path) -> Path:
        if target.suffix == ".png":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(PermissionError):
        sort(run, photos, tmp_path / "sorted")
    assert sorted_files(tmp_path / "sorted") == {}
