"""Stores: of two packings at once one is whole, what cannot be written is found first, odd names come back."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conr.data.items import Source, array_items
from conr.data.store import load_manifest, open_store
from conr.errors import UserError
from conr.parameters import Prepare, PrepareStage
from conr.pipeline.prepare import prepare
from conr.pipeline.workspace import Workspace

SIZE = 6
SETTINGS = Prepare(image_size=SIZE)


def source(name: str, value: int) -> Source:
    images = np.full((30, SIZE, SIZE, 3), value, np.uint8)
    images[:, 0, 0, 0] = np.arange(30)
    return Source(name, array_items(name + "{}", images, ["x"] * 30, SIZE), 30, 0)


OFTEN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from test_stores import SETTINGS, source
from conr.data.pack import pack
for _ in range(60):
    pack(source(sys.argv[2], int(sys.argv[3])), SETTINGS, Path(sys.argv[1]))
"""


def test_two_packings_at_once_publish_the_names_and_the_pixels_of_one(tmp_path: Path) -> None:
    store, here = tmp_path / "store", str(Path(__file__).parent)
    values = {"one": 10, "two": 200}
    packings = [
        subprocess.Popen([sys.executable, "-c", OFTEN, str(store), name, str(value), here], stderr=subprocess.PIPE)
        for name, value in values.items()
    ]
    for packing in packings:
        _, errors = packing.communicate(timeout=90)
        assert packing.returncode == 0, errors
    opened = open_store(store)  # which compares the checksum
    name = opened.manifest.source
    assert opened.manifest.files == [f"{name}{number}" for number in range(30)]
    assert (opened.images[:, 1:] == values[name]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def never(tmp_path: Path) -> Source:
    raise AssertionError("the images were read first")


def prepared(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare digits, where reading them would fail the test."""
    monkeypatch.setattr("conr.pipeline.prepare.open_source", never)
    prepare(workspace, PrepareStage(prepare=Prepare(source="digits")))


def test_a_store_that_is_a_link_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.at(tmp_path)
    (tmp_path / "large disk").mkdir()
    workspace.store.parent.mkdir()
    workspace.store.symlink_to(tmp_path / "large disk")
    with pytest.raises(UserError, match=rf"^{workspace.store} is a link.* put it at {workspace.store.parent}"):
        prepared(workspace, monkeypatch)
    assert workspace.store.is_symlink()


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace.at(tmp_path)
    (tmp_path / "artifacts").write_text("a file in its place")
    with pytest.raises(UserError, match=rf"^{tmp_path}/artifacts cannot be written to"):
        prepared(workspace, monkeypatch)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_is_read_only_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.at(tmp_path)
    workspace.store.mkdir(parents=True)
    workspace.store.chmod(0o555)
    with pytest.raises(UserError, match="read-only"):
        prepared(workspace, monkeypatch)


def test_names_that_are_no_text_come_back(tmp_path: Path) -> None:
    name, label = os.fsdecode("Käfer".encode("latin-1")), os.fsdecode(b"\xff\xfe")
    try:
        (tmp_path / "photos" / label).mkdir(parents=True)
    except OSError:
        pytest.skip("this file system takes Unicode only")
    for number, file in enumerate((f"{name}.png", "b.png")):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / "photos" / label / file)
    (tmp_path / "photos" / f"{name}.txt").touch()
    workspace = Workspace.at(tmp_path)
    settings = Prepare(source="folder", path=str(tmp_path / "photos"), labels="folder", image_size=SIZE)
    packed = prepare(workspace, PrepareStage(prepare=settings))
    found = load_manifest(workspace.store)
    assert found == packed
    assert found.files == [f"{label}/{name}.png", f"{label}/b.png"]
    assert found.class_names == [label]
    assert [file for file, _ in found.skipped] == [f"{name}.txt"]
    assert b"\\ud" not in (workspace.store / "manifest.json").read_bytes(), "other readers of JSON refuse it"
