"""Stages and assign by shares of an array job: the files of a run in one piece, once all shares are there."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from clustered_run import finish, packed_photos, write_photos
from project import SEEDS, tiny
from test_frozen_backbone import write_backbone

from conr.embedding.engines import shards
from conr.embedding.engines.settings import LOCAL, Engine
from conr.embedding.engines.shards import MANIFEST
from conr.errors import UserError
from conr.files import copy_whole
from conr.observer import SILENT
from conr.parameters import Parameters
from conr.pipeline import extract as extracting
from conr.pipeline.assign import assign_folder, assign_share
from conr.pipeline.extract import extract, extract_share
from conr.pipeline.frozen import embed_frozen_share
from conr.pipeline.pretrain import pretrain
from conr.pipeline.workspace import Workspace

MERGE = Engine(shard="merge")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROWS", 256)
    monkeypatch.setattr(shards, "MOST", 128)


def left(workspace: Workspace) -> list[Path]:
    return sorted(workspace.shards("x").parent.rglob("*.parquet"))


@pytest.fixture
def frozen(tmp_path: Path) -> Parameters:
    network = write_backbone(tmp_path / "network.onnx")
    changes = {"network.backbone": f"onnx:{network}", "network.dimension": 8, "finetune.epochs": 0}
    return tiny(changes)


def test_features_of_a_frozen_backbone_by_shares_are_those_of_one_run(workspace: Workspace, frozen: Parameters) -> None:
    pretrain(workspace, frozen)
    expected = workspace.pretrained.features.read_bytes()
    workspace.pretrained.features.unlink()
    with workspace.locked():  # shares run side by side, on machines that see the same folder
        folders = {embed_frozen_share(workspace, frozen, Engine(shard=f"{i}/3"), SILENT) for i in (2, 3)}
    with pytest.raises(UserError, match=r"3 of 8 shards are missing \(1, 4, 7\); run the tasks of --shard"):
        pretrain(workspace, frozen, SILENT, MERGE)
    folders.add(embed_frozen_share(workspace, frozen, Engine(shard="1/3"), SILENT))
    assert len(folders) == 1
    pretrain(workspace, frozen, SILENT, MERGE)
    assert workspace.pretrained.features.read_bytes() == expected
    assert left(workspace) == []


def test_a_run_uses_the_shards_that_are_there_and_makes_the_others(workspace: Workspace, frozen: Parameters) -> None:
    embed_frozen_share(workspace, frozen, Engine(shard="1/2"), SILENT)
    (own,) = {path.parent for path in left(workspace)}
    content = left(workspace)[0].read_bytes()
    left(workspace)[0].write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"^{left(workspace)[0]} is damaged"):
        pretrain(workspace, frozen)
    assert len(left(workspace)) == 8, "of which the last four were made"
    left(workspace)[0].unlink()
    pretrain(workspace, frozen)
    assert not own.exists()


def test_training_has_no_shares(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="--shard is for the features of a frozen backbone"):
        embed_frozen_share(workspace, tiny(), Engine(shard="1/2"), SILENT)


def test_embeddings_of_all_seeds_by_shares_are_those_of_one_run(
    finished: Workspace, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export takes seconds and gives the same file each time (see test_engines.py): this one is copied."""
    monkeypatch.setattr(extracting, "export", lambda network, size, path, facts: copy_whole(finished.encoder, path))
    workspace.borrow(finished, "artifacts/store", "artifacts/pretrain", "artifacts/finetune")
    for share in ("2/2", "1/2"):
        folders = extract_share(workspace, tiny(), Engine(shard=share))
    assert len(folders) == 3, "before ConNR, and after it with two seeds"
    assert len(left(workspace)) == 8, "all three of the same encoder"
    extract(workspace, tiny(), SILENT, MERGE)
    expected = np.load(finished.embeddings(SEEDS[0]))  # of this encoder
    for path in (workspace.embeddings(), *map(workspace.embeddings, SEEDS)):
        np.testing.assert_array_equal(np.load(path), expected)
    assert left(workspace) == []


def test_new_images_by_shares_go_to_the_clusters_of_one_run(encoder: Path, tmp_path: Path) -> None:
    names = [f"{number:03}.png" for number in range(300)]
    write_photos(tmp_path / "photos", names)
    run = packed_photos(tmp_path / "run", tmp_path / "photos")
    finish(run, encoder, {name: number % 3 for number, name in enumerate(names)})
    write_photos(tmp_path / "new", names[:280])
    (tmp_path / "new" / "111.png").write_bytes(b"\x89PNG")
    direct, merged, kept = (tmp_path / f"{name}.csv" for name in ("direct", "merged", "kept"))
    new, folder = tmp_path / "new", tmp_path / "embeddings"
    assign_folder(run, new, direct, device="cpu")
    assert left(run) == []
    for share in ("1/2", "2/2"):
        assign_share(run, new, Engine(shard=share), device="cpu")
    assert len(left(run)) == 2
    found = assign_folder(run, new, merged, device="cpu", engine=MERGE)
    assert [name for name, _ in found.broken] == ["111.png"]
    assign_folder(run, new, kept, device="cpu", embeddings=folder)
    assert direct.read_bytes() == merged.read_bytes() == kept.read_bytes()
    assert left(run) == []

    table = pq.read_table(folder)
    assert len(table) == 280
    assert table["cluster"].null_count == table["embedding"].null_count == 1
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assign_folder(run, new, kept, device="cpu", engine=LOCAL, embeddings=folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")} == written
    assert (folder / MANIFEST).exists()
    (new / "000.png").write_bytes((new / "001.png").read_bytes())
    with pytest.raises(UserError, match="holds shards of other images; name another folder, or delete it"):
        assign_folder(run, new, kept, device="cpu", embeddings=folder)
