"""A run's images as WebDataset tar files: whole, the same bytes each time, read back as the same store."""

import json
import os
import tarfile
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from clustered_run import SIZE, finish, packed_photos, write_photos
from project import refused, table, tiny
from recorder import Recorder

from conr.data.store import open_store
from conr.embedding.engines.settings import Engine
from conr.errors import UserError
from conr.pipeline.assign import assign_folder, assign_share
from conr.pipeline.prepare import prepare
from conr.pipeline.renaming import name_clusters
from conr.pipeline.tars import TABLE, write_tars
from conr.pipeline.workspace import Workspace

CLUSTERS = {"a/1.png": 0, "a/2.png": 1, "b/3.png": 0, "b/4.png": 2}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", list(CLUSTERS))
    return tmp_path / "photos"


@pytest.fixture
def run(encoder: Path, photos: Path, tmp_path: Path) -> Workspace:
    workspace = packed_photos(tmp_path / "run", photos, labels="folder")
    finish(workspace, encoder, CLUSTERS)
    return workspace


def members(folder: Path) -> dict[str, dict[str, bytes]]:
    """Tar file → member → content."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            found[path.name] = {
                name: file.read() for name in archive.getnames() if (file := archive.extractfile(name)) is not None
            }
    return found


def read_back(folder: Path, root: Path) -> Workspace:
    changes = {"source": "webdataset", "path": str(folder), "labels": "dataset", "image_size": SIZE, "fit": "pad"}
    workspace = Workspace.at(root)
    prepare(workspace, tiny({f"prepare.{key}": value for key, value in changes.items()}))
    return workspace


def test_a_sample_is_the_file_itself_its_cluster_and_what_is_known(
    run: Workspace, photos: Path, tmp_path: Path
) -> None:
    name_clusters(run, {0: "red shoes"})
    recorder = Recorder()
    assert write_tars(run, photos, tmp_path / "out", recorder) == 1
    (content,) = members(tmp_path / "out").values()
    for row, (file, cluster) in enumerate(CLUSTERS.items()):
        assert content[f"{row:09d}.png"] == (photos / file).read_bytes()
        assert content[f"{row:09d}.cls"] == str(cluster).encode()
        name = {"name": "red shoes"} if cluster == 0 else {}
        assert json.loads(content[f"{row:09d}.json"]) == {"file": file, "cluster": cluster, "label": file[0], **name}
    assert recorder.tasks == [("shards", 4, 0)]
    assert sum(amount for amount, _ in recorder.steps) == 4


@pytest.mark.parametrize("limit", [1, 600, 10**9])
def test_tar_files_are_bounded_and_the_table_says_what_is_where(
    run: Workspace, photos: Path, tmp_path: Path, limit: int
) -> None:
    count = write_tars(run, photos, tmp_path / "out", shard=limit)
    content = members(tmp_path / "out")
    assert len(content) == count
    for samples in content.values():
        images = [len(image) for name, image in samples.items() if name.endswith(".png")]
        assert len(images) == 1 or sum(images) <= limit
    rows: list[dict[str, Any]] = pq.read_table(tmp_path / "out" / TABLE).to_pylist()
    assert {row["file"]: row["cluster"] for row in rows} == CLUSTERS
    assert [row["label"] for row in rows] == ["a", "a", "b", "b"]
    for row in rows:
        assert content[row["shard"]][f"{row['key']}.png"] == (photos / row["file"]).read_bytes()


@pytest.mark.parametrize("limit", [1, 10**9])
def test_the_tar_files_give_the_same_store_as_the_folder(
    run: Workspace, photos: Path, tmp_path: Path, limit: int
) -> None:
    write_tars(run, photos, tmp_path / "out", shard=limit)
    first, second = (open_store(workspace.store) for workspace in (run, read_back(tmp_path / "out", tmp_path / "back")))
    np.testing.assert_array_equal(first.images, second.images)
    assert second.label_names == first.label_names == ["a", "a", "b", "b"]
    assert second.manifest.checksum == first.manifest.checksum


def test_images_that_are_no_files_of_a_folder_are_written_as_png(
    run: Workspace, photos: Path, encoder: Path, tmp_path: Path
) -> None:
    write_tars(run, photos, tmp_path / "out")
    second = read_back(tmp_path / "out", tmp_path / "back")
    finish(second, encoder, dict(zip(open_store(second.store).manifest.files, CLUSTERS.values(), strict=True)))
    write_tars(second, photos, tmp_path / "again")
    third = read_back(tmp_path / "again", tmp_path / "third")
    np.testing.assert_array_equal(open_store(third.store).images, open_store(run.store).images)


def test_new_images_in_tar_files_go_to_the_clusters_of_the_same_files(
    run: Workspace, photos: Path, tmp_path: Path
) -> None:
    out, kept = tmp_path / "out", tmp_path / "embeddings"
    write_tars(run, photos, out, shard=600)
    assign_folder(run, photos, tmp_path / "files.csv", device="cpu")
    for name in ("members", "again"):
        found = assign_folder(run, out, tmp_path / f"{name}.csv", device="cpu", embeddings=kept, webdataset=True)
        assert found.skipped == [(TABLE, "not a tar file by the suffix of its name")]
    assert (tmp_path / "members.csv").read_bytes() == (tmp_path / "again.csv").read_bytes()
    files = {f"{row['shard']}/{row['key']}.png": row["file"] for row in pq.read_table(out / TABLE).to_pylist()}
    rows = [{**row, "file": files[row["file"]]} for row in table(tmp_path / "members.csv")]
    assert sorted(rows, key=itemgetter("file")) == table(tmp_path / "files.csv")
    tar = next(out.rglob("*.tar"))
    os.utime(tar, (0, 0))
    with pytest.raises(UserError, match="holds shards of other images"):
        assign_folder(run, out, tmp_path / "again.csv", device="cpu", embeddings=kept, webdataset=True)


def test_new_images_in_tar_files_can_be_shared_and_are_not_copied(
    run: Workspace, photos: Path, project: Path, tmp_path: Path
) -> None:
    write_tars(run, photos, tmp_path / "out")
    shards = assign_share(run, tmp_path / "out", Engine(shard="1/1"), device="cpu", webdataset=True)
    assert len(list(shards.glob("*.parquet"))) == 1
    message = refused(project, "assign", str(photos), "--webdataset", "--sort-into", "sorted")
    assert "--sort-into sorted cannot be used with --webdataset: it copies files" in message
    with pytest.raises(UserError, match="holds no tar file with an image"):
        assign_folder(run, photos, tmp_path / "table.csv", device="cpu", webdataset=True)


def test_two_exports_are_equal_to_the_byte(run: Workspace, photos: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tars(run, photos, tmp_path / name, shard=600)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_nothing_is_left_of_an_export_that_fails_and_nothing_is_overwritten(
    run: Workspace, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("conr.pipeline.tars._add", fails)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(OSError, match="the disk is full"):
        write_tars(run, photos, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(UserError, match="is not empty; name a new folder"):
        write_tars(run, photos, tmp_path / "run")
    with pytest.raises(UserError, match=r"lies in .*, whose images are sorted"):
        write_tars(run, photos, photos / "out")
    (photos / "a/1.png").unlink()
    with pytest.raises(UserError, match=r"a/1\.png is no longer there"):
        write_tars(run, photos, tmp_path / "out")


def test_tar_files_hold_no_links(project: Path) -> None:
    message = refused(project, "sort", "out", "--webdataset", "--link", "hard")
    assert "--link hard cannot be used with --webdataset" in message
