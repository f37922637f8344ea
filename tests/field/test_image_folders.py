"""Folders that people have: of a NAS or a phone, with stacks, strangers among the images, and odd names."""

import os
from pathlib import Path

import numpy as np
import pytest
from forked import run_conr
from PIL import Image
from project import refused, write_params

from conr.data.folders import OF_A_SYSTEM, images_below
from conr.data.items import NO_SUFFIX, Source
from conr.data.sources import open_source
from conr.data.store import load_manifest
from conr.errors import UserError
from conr.observer import SILENT
from conr.parameters import Prepare, PrepareStage
from conr.pipeline.workspace import Workspace
from conr.stages import prepare as command

SIZE = 8


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


def write(root: Path, *files: str, kind: str | None = None) -> None:
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        noise(number).save(root / file, kind)


def source(root: Path, **settings: object) -> Source:
    return open_source(Prepare.model_validate({"source": "folder", "path": str(root), "image_size": SIZE, **settings}))


def files(found: Source) -> list[str]:
    return [item.file for item in found.items]


def summary(root: Path, workspace: Workspace, **settings: object) -> list[str]:
    content = {"source": "folder", "path": str(root), "image_size": SIZE, **settings}
    return command.run(workspace, PrepareStage(prepare=Prepare.model_validate(content)), SILENT).splitlines()


# Which files


SYSTEM = ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "System Volume Information", "lost+found", "@Recycle")


@pytest.mark.parametrize("name", SYSTEM)
def test_folders_that_a_system_keeps_for_itself_are_passed_over_and_listed(tmp_path: Path, name: str) -> None:
    photos = tmp_path / "photos"
    write(photos, "trip/a.jpg", f"trip/{name}/a.jpg/thumb_M.jpg", f"{name}/deleted.jpg")
    found = source(photos)
    assert files(found) == ["trip/a.jpg"]
    assert found.skipped == [(name, OF_A_SYSTEM), (f"trip/{name}", OF_A_SYSTEM)]
    items, skipped = images_below(photos, "x", SIZE, "crop")  # as assign does
    assert [item.file for item in items] == ["trip/a.jpg"]
    assert len(skipped) == 2
    lines = summary(photos, Workspace.at(tmp_path))
    assert lines[1].startswith(f"2 files or folders skipped (2 × {OF_A_SYSTEM}); ")


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["*_mask.png"], ["a.png", "b/a.png", "thumbs/a.png"]),
        (["thumbs", "b"], ["a.png", "a_mask.png"]),
        (["b/*"], ["a.png", "a_mask.png", "thumbs/a.png"]),
        (["thumbs/a.png", "b/"], ["a.png", "a_mask.png", "b/a.png", "b/a_mask.png"]),
        (["A.png"], ["a.png", "a_mask.png", "b/a.png", "b/a_mask.png", "thumbs/a.png"]),
    ],
)
def test_files_and_folders_can_be_left_out(tmp_path: Path, patterns: list[str], left: list[str]) -> None:
    write(tmp_path, "a.png", "a_mask.png", "b/a.png", "b/a_mask.png", "thumbs/a.png")
    found = source(tmp_path, exclude=patterns)
    if patterns[-1] == "b/":  # with a slash a pattern is a path
        left = ["a.png", "a_mask.png"]
    assert files(found) == left
    assert all(reason.startswith("left out by prepare.exclude: ") for _, reason in found.skipped)


def test_what_to_leave_out_can_be_a_flag(tmp_path: Path) -> None:
    write_params(tmp_path, {"prepare.source": "folder", "prepare.path": "photos", "prepare.labels": "none"})
    write(tmp_path / "photos", "a.png", "a_mask.png", "thumbs/b.png")
    done = run_conr(tmp_path, "prepare", "--exclude", "*_mask.png,thumbs")
    assert done.returncode == 0, done.stderr
    assert load_manifest(tmp_path / "artifacts/store").files == ["a.png"]


SUFFIXES = {
    "JPEG": "jfif jpe JPEG",
    "GIF": "gif",
    "AVIF": "avif",
    "JPEG2000": "jp2 j2k",
    "PPM": "ppm pnm",
    "BMP": "dib",
}


def test_all_suffixes_of_the_formats_count_and_files_without_one_by_their_content(tmp_path: Path) -> None:
    expected = []
    for kind, suffixes in SUFFIXES.items():
        for suffix in suffixes.split():
            write(tmp_path, f"{kind}.{suffix}", kind=kind)
            expected.append(f"{kind}.{suffix}")
    write(tmp_path, "IMG_0001", kind="PNG")
    (tmp_path / "README").write_text("no image")
    os.mkfifo(tmp_path / "pipe")
    found = source(tmp_path)
    assert files(found) == sorted([*expected, "IMG_0001"])
    assert found.skipped == [("README", NO_SUFFIX), ("pipe", NO_SUFFIX)]
    assert all(item.read().shape == (SIZE, SIZE, 3) for item in found.items)


def test_heic_without_its_package_is_skipped_and_not_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    monkeypatch.setattr("conr.data.items.heif_is_read", lambda: False)
    ((file, reason),) = source(tmp_path).skipped
    assert file == "IMG_1.HEIC"
    assert "conr[heic]" in reason


@pytest.mark.timeout(20)
def test_a_pipe_with_the_name_of_an_image_is_no_reason_to_wait(tmp_path: Path) -> None:
    write(tmp_path / "photos", *(f"{number}.png" for number in range(9)))
    os.mkfifo(tmp_path / "photos/x.jpg")
    lines = summary(tmp_path / "photos", Workspace.at(tmp_path))
    assert lines[-1] == "  1 × not a regular file; the first: x.jpg"


# What is said


def test_skipped_files_are_summed_up_by_suffix_with_a_warning_where_most_were(tmp_path: Path) -> None:
    write(tmp_path / "photos", "a.png", "b.png")
    for name in ("1.txt", "2.txt", "3.mp4", "README"):
        (tmp_path / "photos" / name).touch()
    lines = summary(tmp_path / "photos", Workspace.at(tmp_path))
    assert "4 files or folders skipped (2 .txt, 1 .mp4, 1 without a suffix); " in lines[1]
    assert "warning: more files were skipped than packed; is prepare.path the right folder?" in lines


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("a.TXT", "b"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"2 other files \(1 \.txt, 1 without a suffix\)$"):
        source(tmp_path)


def test_names_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    write(tmp_path / "photos", "a.png", "a\x1b]0;title\x07.png", "b\u202egnp.png")
    for file in (tmp_path / "photos").iterdir():
        noise(0).save(file, "PNG")
    (tmp_path / "photos/\x1b[2J.txt").touch()
    text = "\n".join(summary(tmp_path / "photos", Workspace.at(tmp_path)))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"\x1b[2J.txt" in text


def test_images_of_a_single_color_and_equal_ones_are_counted_and_named(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write(photos, "a.png", "b.png")
    noise(0).save(photos / "c.png")
    noise(0).save(photos / "d.png")
    for number in range(4):
        Image.new("RGB", (9, 9), (77, 77, 77)).save(photos / f"blank{number}.png")
    lines = summary(photos, Workspace.at(tmp_path))
    assert "4 images have a single color: blank0.png, blank1.png, blank2.png, …" in lines
    assert "2 images equal another one: c.png, d.png" in lines
    manifest = load_manifest(tmp_path / "artifacts/store")
    assert [manifest.files[image] for image in manifest.blank] == [f"blank{number}.png" for number in range(4)]
    names = [(manifest.files[image], manifest.files[first]) for image, first in manifest.duplicates]
    assert names == [("c.png", "a.png"), ("d.png", "a.png")]


# Stacks


@pytest.fixture
def stacks(tmp_path: Path) -> Path:
    """A folder with a stack of 12 pages and a picture."""
    pages = [Image.fromarray(np.eye(SIZE, k=page - 6, dtype=np.uint8) * 255) for page in range(12)]
    (tmp_path / "stacks/cells").mkdir(parents=True)
    pages[0].save(tmp_path / "stacks/cells/z.tif", save_all=True, append_images=pages[1:])
    noise(0).save(tmp_path / "stacks/cells/a.png")
    return tmp_path / "stacks"


@pytest.mark.parametrize(("frames", "used"), [("first", "the first counts"), ("max", "the maximum of all counts")])
def test_a_stack_is_one_image_and_it_is_said_which(stacks: Path, frames: str, used: str) -> None:
    lines = summary(stacks, Workspace.at(stacks.parent), frames=frames, labels="folder")
    assert f"1 files have more than one page or frame; {used} (prepare.frames)" in lines
    found = source(stacks, frames=frames)
    assert files(found) == ["cells/a.png", "cells/z.tif"]
    expected = np.eye(SIZE, k=-6) if frames == "first" else np.sum([np.eye(SIZE, k=k) for k in range(-6, 6)], axis=0)
    np.testing.assert_array_equal(found.items[1].read()[:, :, 1], expected * 255)


def test_all_pages_of_a_stack_can_be_images_of_its_label(stacks: Path) -> None:
    found = source(stacks, frames="all", labels="folder")
    assert files(found) == ["cells/a.png", *(f"cells/z.tif#{page:02}" for page in range(1, 13))]
    assert {item.label for item in found.items} == {"cells"}
    np.testing.assert_array_equal(found.items[3].read()[:, :, 0], np.eye(SIZE, k=-4) * 255)


# prepare.path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (2024, "prepare.path = 2024 should be '2024', in quotes: without them it is a number"),
        ("", "prepare.path = '' should be the name of a folder, in quotes if it begins with #"),
        (None, "prepare.path = None should be the name of a folder, in quotes if it begins with #"),
        (".", "prepare.path: . holds the project itself"),
        ("dead", "prepare.path: dead is a link to nowhere, which does not exist"),
        ("pipe", "prepare.path: pipe is not a folder"),
        ("gone", "prepare.path: gone does not exist"),
    ],
)
def test_a_path_that_cannot_be_used_is_explained(tmp_path: Path, path: object, message: str) -> None:
    write_params(tmp_path, {"prepare.source": "folder", "prepare.path": path, "prepare.labels": "none"})
    write(tmp_path, "a.png")
    (tmp_path / "dead").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert message in refused(tmp_path, "prepare")
    assert not (tmp_path / "artifacts/store").exists()


def test_a_path_with_a_number_or_a_hash_works_in_quotes(tmp_path: Path) -> None:
    for name in ("2024", "#1 photos"):
        write(tmp_path / name, "a.png")
        write_params(tmp_path, {"prepare.source": "folder", "prepare.path": name, "prepare.labels": "none"})
        assert run_conr(tmp_path, "prepare").returncode == 0
