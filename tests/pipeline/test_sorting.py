"""A run's own images in folders by cluster: copied or linked, with names, resumed, and nothing lost or overwritten."""

import errno
import os
from pathlib import Path

import pytest
from clustered_run import finish, packed_photos, write_photos
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from recorder import Recorder

from conr.errors import UserError
from conr.pipeline.renaming import name_clusters
from conr.pipeline.sorting import Link, folder_names, sort_run
from conr.pipeline.workspace import Workspace

CLUSTERS = {"a.png": 0, "deep/a.png": 1, "deep/er/c.png": 0, "d.png": 2}
SORTED = {f"{cluster}/{file}": file for file, cluster in CLUSTERS.items()}
LINKS = pytest.mark.parametrize("link", ["none", "hard", "symbolic"])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", list(CLUSTERS))
    return tmp_path / "photos"


@pytest.fixture
def run(encoder: Path, photos: Path, tmp_path: Path) -> Workspace:
    workspace = packed_photos(tmp_path / "run", photos)
    finish(workspace, encoder, CLUSTERS)
    return workspace


def files_below(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files_below(folder).items()}


@LINKS
def test_every_image_is_in_the_folder_of_its_cluster(run: Workspace, photos: Path, tmp_path: Path, link: Link) -> None:
    before = contents(photos)
    recorder = Recorder()
    assert sort_run(run, photos, tmp_path / "sorted", link, recorder) == ["0", "1", "2"]
    found = files_below(tmp_path / "sorted")
    assert {name: path.read_bytes() for name, path in found.items()} == {
        name: before[file] for name, file in SORTED.items()
    }
    for name, path in found.items():
        assert path.is_symlink() == (link == "symbolic")
        assert path.lstat().st_ino == (photos / SORTED[name]).stat().st_ino if link == "hard" else path.samefile(path)
    assert contents(photos) == before
    assert recorder.tasks == [("sort", 4, 0)]
    assert sum(amount for amount, _ in recorder.steps) == 4


@LINKS
def test_the_same_call_adds_what_is_missing_and_keeps_the_rest(
    run: Workspace, photos: Path, tmp_path: Path, link: Link
) -> None:
    target = tmp_path / "sorted"
    sort_run(run, photos, target, link)
    before = {name: path.lstat() for name, path in files_below(target).items()}
    (target / "0/a.png").unlink()
    sort_run(run, photos, target, link)
    after = {name: path.lstat() for name, path in files_below(target).items()}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name].st_ino != before[name].st_ino} <= {"0/a.png"}


def test_a_copy_that_was_edited_is_kept(run: Workspace, photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "sorted"
    sort_run(run, photos, target)
    copy = target / "0/a.png"
    Image.new("RGB", (3, 3)).save(copy)
    edited = copy.read_bytes()
    sort_run(run, photos, target)
    assert copy.read_bytes() == edited


@pytest.mark.parametrize("first", ["none", "hard", "symbolic"])
@pytest.mark.parametrize("then", ["none", "hard", "symbolic"])
def test_another_kind_of_link_needs_another_folder(
    run: Workspace, photos: Path, tmp_path: Path, first: Link, then: Link
) -> None:
    if first == then:
        pytest.skip("that is to resume")
    target = tmp_path / "sorted"
    sort_run(run, photos, target, first)
    before = {name: path.lstat() for name, path in files_below(target).items()}
    what = {"none": "a copy", "hard": "a hard link", "symbolic": "a symbolic link"}[then]
    with pytest.raises(
        UserError, match=rf"^{target} holds something else than what {what} would be: 0/a\.png; name a new"
    ):
        sort_run(run, photos, target, then)
    assert {name: path.lstat() for name, path in files_below(target).items()} == before


def test_a_link_to_an_image_elsewhere_is_linked_and_copied_as_that_image(
    run: Workspace, photos: Path, tmp_path: Path
) -> None:
    (photos / "a.png").rename(tmp_path / "elsewhere.png")
    (photos / "a.png").symlink_to(tmp_path / "elsewhere.png")
    for link in ("none", "hard", "symbolic"):
        sort_run(run, photos, tmp_path / link, link)
        assert (tmp_path / link / "0/a.png").read_bytes() == (tmp_path / "elsewhere.png").read_bytes()
    assert (tmp_path / "hard/0/a.png").samefile(tmp_path / "elsewhere.png")
    assert not (tmp_path / "none/0/a.png").is_symlink()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM])
def test_where_there_are_no_hard_links_the_error_names_what_works(
    run: Workspace, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*paths: object, **others: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(UserError, match=r"/0/a\.png cannot be a hard link to .*photos/a\.png \(.*--link symbolic"):
        sort_run(run, photos, tmp_path / "sorted", "hard")
    assert contents(tmp_path / "sorted") == {}


@pytest.mark.parametrize("other", ["notes.txt", "0/notes.txt", "1/a.png", "0 red/a.png"])
@LINKS
def test_a_folder_with_other_files_is_refused(
    run: Workspace, photos: Path, tmp_path: Path, other: str, link: Link
) -> None:
    target = tmp_path / "sorted"
    (target / other).parent.mkdir(parents=True)
    (target / other).write_text("mine")
    with pytest.raises(UserError, match=f"^{target} holds something else than these copies, the first: {other};"):
        sort_run(run, photos, target, link)
    assert contents(target) == {other: b"mine"}


def test_names_are_part_of_the_folders_names(run: Workspace, photos: Path, tmp_path: Path) -> None:
    name_clusters(run, {0: "red shoes", 2: 'a/b\\c: "d"*?<e>|f.'})
    sort_run(run, photos, tmp_path / "sorted")
    folders = {path.name for path in (tmp_path / "sorted").iterdir()}
    assert folders == {"0 red shoes", "1", "2 a_b_c_ _d____e__f"}


@given(st.dictionaries(st.integers(0, 11), st.text(max_size=100), max_size=12))
def test_folders_of_any_names_differ_and_can_be_made(names: dict[int, str]) -> None:
    names = {number: name.encode(errors="ignore").decode() for number, name in names.items()}
    folders = folder_names(12, names)
    assert len({folder.casefold() for folder in folders}) == 12
    for number, folder in enumerate(folders):
        assert folder.startswith(f"{number:02}")
        assert len(folder.encode()) <= 255
        assert not set(folder) & set('/\\<>:"|?*')
        assert folder == folder.rstrip(" .")


def test_images_that_are_no_files_are_refused(encoder: Path, packed: Workspace, tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / "digits")
    workspace.borrow(packed, "artifacts/store")
    digits = {f"digit-{number:04d}": number % 3 for number in range(1797)}
    finish(workspace, encoder, digits)
    with pytest.raises(UserError, match=r"^the images are scikit-learn's digits, not files in a folder"):
        sort_run(workspace, tmp_path / "images", tmp_path / "sorted")


def test_pages_of_a_file_are_refused(encoder: Path, photos: Path, tmp_path: Path) -> None:
    pages = [Image.new("RGB", (8, 8), (shade, 0, 255 - shade)) for shade in (0, 90, 250)]
    pages[0].save(photos / "stack.tif", save_all=True, append_images=pages[1:])
    workspace = packed_photos(tmp_path / "paged", photos, frames="all")
    clusters = {**CLUSTERS, **{f"stack.tif#{number}": 1 for number in (1, 2, 3)}}
    finish(workspace, encoder, clusters)
    with pytest.raises(UserError, match=r"^stack\.tif#1 is a page of stack\.tif, not a file .*prepare\.frames: first"):
        sort_run(workspace, photos, tmp_path / "sorted")
    assert not (tmp_path / "sorted").exists()


def test_an_image_that_is_gone_is_named_before_any_is_copied(run: Workspace, photos: Path, tmp_path: Path) -> None:
    (photos / "d.png").unlink()
    with pytest.raises(UserError, match=r"/photos/d\.png is no longer there; run dvc repro again$"):
        sort_run(run, photos, tmp_path / "sorted")
    assert not (tmp_path / "sorted").exists()


def test_another_folder_than_that_of_the_run_is_refused(run: Workspace, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^the results are of {photos}, but prepare.path is {tmp_path}/other; run dvc"):
        sort_run(run, tmp_path / "other", tmp_path / "sorted")


def test_a_target_inside_the_images_is_refused(run: Workspace, photos: Path) -> None:
    with pytest.raises(UserError, match=f"^{photos}/sorted lies in {photos}, whose images are sorted"):
        sort_run(run, photos, photos / "sorted")
    assert not (photos / "sorted").exists()


@LINKS
def test_a_name_that_is_not_unicode_is_kept(encoder: Path, tmp_path: Path, link: Link) -> None:
    name = os.fsdecode("Käfer.png".encode("latin-1"))
    write_photos(tmp_path / "photos", ["a.png", "b.png"])
    try:
        (tmp_path / "photos/b.png").rename(tmp_path / "photos" / name)
    except OSError:
        pytest.skip("this file system takes Unicode only")
    workspace = packed_photos(tmp_path / "run", tmp_path / "photos")
    finish(workspace, encoder, {"a.png": 0, name: 1})
    sort_run(workspace, tmp_path / "photos", tmp_path / "sorted", link)
    assert files_below(tmp_path / "sorted").keys() == {"0/a.png", f"1/{name}"}
