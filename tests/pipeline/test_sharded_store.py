"""A store in shards: every stage has the results that it has from one file, bit for bit."""

import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from project import FINISHED, IMAGES, SEEDS, run_stages, tiny

from conr.data import writing
from conr.data.images import ShardedImages
from conr.data.store import load_manifest, open_store
from conr.embedding.engines.settings import LOCAL, Engine
from conr.observer import SILENT
from conr.parameters import PrepareStage
from conr.pipeline.embedding import StoreEmbedding
from conr.pipeline.info import info
from conr.pipeline.workspace import Workspace
from conr.stages import prepare

SHARD = 100  # images
IN_SHARDS = tiny({**FINISHED, "prepare.shard_size": 1})


@pytest.fixture(scope="module")
def packed_in_shards(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The digits of the finished run in shards of 100 images of 192 bytes. Not to be written to."""
    workspace = Workspace.at(tmp_path_factory.mktemp("shards"))
    with mock.patch.object(writing, "MEGABYTE", SHARD * 192):
        summary = prepare.run(workspace, PrepareStage.of(IN_SHARDS), SILENT)
    assert summary.splitlines()[0].endswith("artifacts/store, 18 shards")
    return workspace


@pytest.fixture
def own(packed_in_shards: Workspace, tmp_path: Path) -> Workspace:
    """The same images, and nothing has run."""
    workspace = Workspace.at(tmp_path)
    workspace.borrow(packed_in_shards, "artifacts/store")
    return workspace


def test_only_the_files_of_the_images_differ(finished: Workspace, packed_in_shards: Workspace) -> None:
    one, shards = open_store(finished.store), open_store(packed_in_shards.store)
    assert isinstance(one.images, np.memmap)
    assert isinstance(shards.images, ShardedImages)
    np.testing.assert_array_equal(np.asarray(shards.images), one.images)
    assert shards.manifest.model_copy(update={"shards": None}) == one.manifest
    names = {path.relative_to(packed_in_shards.store).as_posix() for path in packed_in_shards.store.rglob("*.*")}
    assert names == {"manifest.json", "images.parquet", *(f"images/{number:05}.npy" for number in range(18))}
    assert b"shards" not in (finished.store / "manifest.json").read_bytes()
    assert load_manifest(packed_in_shards.store).shards == -(-IMAGES // SHARD)


def test_info_tells_of_the_shards_and_names_one_that_is_another_file(
    packed_in_shards: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conr.data.store.CHECKED", 0)  # as of a large store
    shutil.copytree(packed_in_shards.store, tmp_path / "artifacts/store")
    own = Workspace.at(tmp_path)
    left, wrong = info(own, verify=True)
    assert (left[0].holds, wrong) == ("1,797 images of scikit-learn's digits in 18 shards", [])
    shutil.copy(own.store / "images/00003.npy", own.store / "images/00004.npy")
    assert info(own, verify=False)[1] == []
    _, (named,) = info(own, verify=True)
    assert named.startswith(f"{own.store / 'images/00004.npy'} is not the file that images.parquet names (SHA-256)")


def test_training_gives_the_same_weights(finished: Workspace, own: Workspace, one_thread: None) -> None:
    alone = IN_SHARDS.changed({"seeds": [3]})
    run_stages(own, alone, "pretrain", "finetune")
    assert own.pretrained.weights.read_bytes() == finished.pretrained.weights.read_bytes()
    assert own.finetuned(3).weights.read_bytes() == finished.finetuned(3).weights.read_bytes()


@pytest.mark.parametrize("engine", [LOCAL, Engine(shard="1/1")], ids=["local", "shards of an array job"])
def test_embeddings_are_the_same(finished: Workspace, own: Workspace, engine: Engine) -> None:
    embedding = StoreEmbedding(own, open_store(own.store), "cpu", engine)
    embedding.write(finished.encoder, own.root / "found.npy", "embed")
    assert (own.root / "found.npy").read_bytes() == finished.embeddings(SEEDS[0]).read_bytes()


def test_scores_page_and_tables_are_the_same(finished: Workspace, own: Workspace, one_thread: None) -> None:
    own.borrow(finished, *(f"artifacts/{name}" for name in ("pretrain", "finetune", "encoder.onnx", "embeddings")))
    run_stages(own, IN_SHARDS, "evaluate")
    files = {path.relative_to(own.results).as_posix() for path in own.results.rglob("*") if path.is_file()}
    assert files == {path.relative_to(finished.results).as_posix() for path in finished.results.rglob("*.*")}
    assert {"assignments.parquet", "report.html", "figures/gallery.png"} <= files

    def content(workspace: Workspace, file: str) -> bytes:
        return (workspace.results / file).read_bytes().replace(str(workspace.root).encode(), b"")

    different = {file for file in files if content(own, file) != content(finished, file)}
    assert different == set()
