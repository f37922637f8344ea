"""A folder that changes while conr reads it: what is gone is named, what is packed is true, what is new comes next."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from project import tiny
from ruamel.yaml import YAML
from small_networks_onnx import write_network

from conr.data import folders
from conr.data.decode import decode
from conr.data.folders import images_below
from conr.data.pack import pack
from conr.data.sources import open_source
from conr.data.store import load_manifest, open_store
from conr.errors import UserError
from conr.pipeline.cluster_folder import Plan, has_changed, plan, prepare_project
from conr.pipeline.reproduce import reproduce

SIZE, COUNT = 32, 90
GONE = "broken: not there when it was read (No such file or directory)"


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(COUNT):
        write_image(tmp_path / f"photos/{number % 3}/{number:02}.jpg", number)
    return tmp_path / "photos"


def settings_of(folder: Path, max_broken: float) -> Any:
    changes = {"source": "folder", "path": str(folder), "labels": "none", "image_size": SIZE, "max_broken": max_broken}
    return tiny({f"prepare.{key}": value for key, value in changes.items()}).prepare


def test_what_changes_between_listing_and_reading_is_named_or_read_as_it_is(photos: Path, tmp_path: Path) -> None:
    settings = settings_of(photos, 0.5)
    source = open_source(settings)
    files = [item.file for item in source.items]
    drawn = random.Random(0).sample(files, 40)
    gone, cut, emptied, replaced = (set(drawn[first : first + 10]) for first in range(0, 40, 10))
    for file in gone:
        (photos / file).unlink()
    for file in cut | emptied:
        os.truncate(photos / file, 400 if file in cut else 0)
    for number, file in enumerate(replaced):
        write_image(photos / "new.jpg", 1000 + number)
        (photos / "new.jpg").replace(photos / file)
    write_image(photos / "later.jpg", 7)

    manifest = pack(source, settings, tmp_path / "store")
    assert manifest.files == [file for file in files if file not in gone | cut | emptied]
    for file, pixels in zip(manifest.files, open_store(tmp_path / "store").images, strict=True):
        np.testing.assert_array_equal(pixels, decode(photos / file, SIZE, settings.fit))
    reasons = Counter(reason for _, reason in manifest.skipped)
    assert reasons == {GONE: 10, "broken: the file ends too early (truncated)": 10, "empty file": 10}
    assert {file for file, reason in manifest.skipped if reason == GONE} == gone

    for file in manifest.files:
        (photos / file).unlink()
    with pytest.raises(UserError, match=r"none of 90 images can be read\n  70 × broken: not there when it was read"):
        pack(source, settings, tmp_path / "store")
    assert load_manifest(tmp_path / "store") == manifest, "the store that was whole is kept"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_folder_that_is_gone_once_its_name_was_read_is_left_out(
    photos: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    walk = os.walk

    def walk_and_remove(top: str, **named: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for entry in walk(top, **named):
            if Path(entry[0]) == (photos if when == "before" else photos / "1"):
                shutil.rmtree(photos / "1")
            yield entry

    monkeypatch.setattr(folders.os, "walk", walk_and_remove)
    items, left_out = images_below(photos, "photos", SIZE, "crop")
    assert {item.file[0] for item in items} == {"0", "2"}
    assert left_out == [("1", "a folder that cannot be read (No such file or directory)")]


def project_that_only_packs(photos: Path, tmp_path: Path, then: str) -> Plan:
    """A project for the photos of which only prepare is run, and then a command, before DVC looks at them again."""
    network = f"onnx:{write_network(tmp_path / 'tiny.onnx')}"
    made = plan(photos, "3", tmp_path / "project", network)
    prepare_project(made, network)
    path, yaml = made.project / "dvc.yaml", YAML()
    stages = yaml.load(path)["stages"]
    stages["prepare"]["cmd"] += f" && {then}"
    yaml.dump({"stages": {"prepare": stages["prepare"]}}, path)
    return made


def test_images_that_come_while_others_are_read_are_packed_by_the_next_run(photos: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "late.jpg", 7)
    made = project_that_only_packs(photos, tmp_path, f"cp '{tmp_path}/late.jpg' '{photos}/late.jpg'")
    assert has_changed(made), "nothing has been read yet"
    assert reproduce(made.project) == 0
    assert load_manifest(made.workspace.store).count == COUNT
    assert has_changed(made)
    assert reproduce(made.project, anew="prepare") == 0
    assert load_manifest(made.workspace.store).count == COUNT + 1
