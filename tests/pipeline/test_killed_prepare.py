"""A `prepare` that is killed: the next one decodes only what is missing, and packs the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conr.data import items, unfinished, writing
from conr.data.decode import decode
from conr.data.folders import folder_state
from conr.data.sources import open_source
from conr.data.unfinished import fingerprint
from conr.errors import UserError
from conr.observer import Observer
from conr.parameters import Prepare, PrepareStage
from conr.pipeline.prepare import prepare
from conr.pipeline.workspace import Workspace

COUNT, SIZE, KILLED_AT = 200, 8, 150
SHARD = 50 * SIZE**2 * 3  # bytes
# The folder of this file, that of the photos, the root of the workspace, the image before which it kills itself, and
# the size of shards.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_killed_prepare import items, decode, parameters, prepare, unfinished, writing, SHARD, Workspace

def deadly(path, *others, **named):
    if path.endswith(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(path, *others, **named)

items.decode, unfinished.INTERVAL, unfinished.SAVING, writing.MEGABYTE = deadly, 0, 1e9, SHARD
prepare(Workspace.at(Path(sys.argv[3])), parameters(Path(sys.argv[2]), shard_size=int(sys.argv[5])))
"""


def parameters(photos: Path, **changes: object) -> PrepareStage:
    settings = {"source": "folder", "path": str(photos), "labels": "parent", "image_size": SIZE, **changes}
    return PrepareStage(prepare=Prepare.model_validate(settings))


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of which every tenth is broken, and two are equal."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        write_image(folder / f"{number % 2}/{number:03}.png", 7 if number in (20, 190) else number)
        if number % 10 == 3:
            os.truncate(folder / f"{number % 2}/{number:03}.png", 60)
    return folder


def kill_one(photos: Path, root: Path, shard_size: int = 0) -> None:
    """Run a process in a workspace that is killed after 150 images."""
    file = open_source(parameters(photos).prepare).items[KILLED_AT].file
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(photos), str(root), file, str(shard_size)]
    assert subprocess.run(command, timeout=90, check=False).returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def killed_once(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which a process was killed. Not to be written to."""
    root = tmp_path_factory.mktemp("killed")
    kill_one(photos, root)
    return root


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(killed_once, tmp_path / "killed")
    return Workspace.at(tmp_path / "killed")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are decoded from now on."""
    files: list[str] = []

    def watched(path: str, *others: object) -> object:
        files.append(Path(path).name)
        return decode(path, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(items, "decode", watched)
    return files


class Progress(Observer):
    def __init__(self) -> None:
        self.at: list[int] = []

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[None]:
        assert (name, total) == ("prepare", COUNT)
        self.at.append(done)
        yield

    def step_done(self, amount: int = 1, note: str = "") -> None:
        self.at.append(self.at[-1] + amount)


def contents(workspace: Workspace) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in workspace.store.rglob("*.*")}


def unfinished_in(workspace: Workspace) -> list[Path]:
    return list(workspace.checkpoint("").glob("*"))


@pytest.fixture
def expected(photos: Path, tmp_path: Path) -> dict[str, bytes]:
    """The store of a run that nobody stopped."""
    workspace = Workspace.at(tmp_path / "whole")
    prepare(workspace, parameters(photos))
    assert unfinished_in(workspace) == []
    return contents(workspace)


def test_the_next_run_decodes_only_what_is_missing_and_packs_the_same_bytes(
    photos: Path, killed: Workspace, expected: dict[str, bytes], decoded: list[str]
) -> None:
    files = [Path(item.file).name for item in open_source(parameters(photos).prepare).items]
    progress = Progress()
    assert not killed.store.exists()
    prepare(killed, parameters(photos), progress)
    kept = progress.at[0]
    assert 0 < kept <= KILLED_AT
    assert decoded == files[kept:]
    assert progress.at[-1] == COUNT
    assert contents(killed) == expected
    assert unfinished_in(killed) == []


def test_shards_that_are_whole_are_kept_and_the_others_are_the_same_bytes(
    photos: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "MEGABYTE", SHARD)
    killed, whole = (Workspace.at(tmp_path / name) for name in ("killed", "whole"))
    kill_one(photos, killed.root, shard_size=1)
    (folder,) = unfinished_in(killed)
    kept = {path.name: path.stat() for path in sorted((folder / "images").iterdir())[:-1]}
    assert list(kept) == ["00000.npy", "00001.npy"], "of 135 images the last 35 are in a shard that is not whole"
    prepare(killed, parameters(photos, shard_size=1))
    assert 0 < len(decoded) < COUNT
    for name, before in kept.items():
        after = (killed.store / "images" / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "it was moved, not written"
    prepare(whole, parameters(photos, shard_size=1))
    assert contents(killed) == contents(whole)
    assert len(contents(killed)) == 2 + 4
    assert unfinished_in(killed) == []


@pytest.mark.parametrize("damaged", ["images.npy", "progress.json"])
def test_what_is_not_whole_is_not_taken_over(
    photos: Path, killed: Workspace, expected: dict[str, bytes], decoded: list[str], damaged: str
) -> None:
    (folder,) = unfinished_in(killed)
    (saved,) = unfinished.Unfinished(folder, SIZE, writing.ONE_FILE).progress.sizes
    os.truncate(folder / damaged, saved - 1 if damaged == "images.npy" else 9)
    prepare(killed, parameters(photos))
    assert len(decoded) == COUNT
    assert contents(killed) == expected


def test_bytes_behind_the_last_save_are_written_again(
    photos: Path, killed: Workspace, expected: dict[str, bytes]
) -> None:
    (folder,) = unfinished_in(killed)
    with (folder / "images.npy").open("ab") as file:
        file.write(b"half an image")
    prepare(killed, parameters(photos))
    assert contents(killed) == expected


@pytest.mark.parametrize("change", ["content", "new file", "image_size", "fit"])
def test_of_other_images_or_settings_nothing_is_kept(
    photos: Path, killed: Workspace, decoded: list[str], tmp_path: Path, change: str
) -> None:
    shutil.copytree(photos, tmp_path / "photos")  # with their times
    changes: dict[str, object] = {"image_size": {"image_size": 6}, "fit": {"fit": "pad"}}.get(change, {})
    if change == "content":
        write_image(tmp_path / "photos/0/000.png", 1)
    elif change == "new file":
        write_image(tmp_path / "photos/1/999.png", 1)
    before = unfinished_in(killed)
    prepare(killed, parameters(tmp_path / "photos", **changes))
    assert len(decoded) == COUNT + (change == "new file")
    assert not before[0].exists(), "it would take space for ever"


def test_labels_and_the_share_of_broken_images_may_change(
    photos: Path, killed: Workspace, decoded: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"20 of 200 images cannot be read .* accepts 5%"):
        prepare(killed, parameters(photos, max_broken=0.05))
    assert 0 < len(decoded) < COUNT
    assert prepare(killed, parameters(photos, labels="none")).labels is None
    assert len(decoded) < 2 * COUNT


def test_two_processes_with_the_same_images_do_not_share_what_is_unfinished(
    photos: Path, killed: Workspace, expected: dict[str, bytes], decoded: list[str]
) -> None:
    settings = parameters(photos).prepare
    name = f"prepare-{fingerprint(open_source(settings), settings, folder_state(photos, ''))}"
    before = {path.name: path.read_bytes() for path in killed.checkpoint(name).iterdir()}
    with killed.own_checkpoint(name) as folder:
        assert folder == killed.checkpoint(name)
        other = Workspace(killed.root / "experiment", killed.scratch)
        prepare(other, parameters(photos))
        assert len(decoded) == COUNT
        assert contents(other) == expected
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
