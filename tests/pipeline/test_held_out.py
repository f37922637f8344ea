"""The held-out protocol: what is trained on, what k-means sees and what is scored are kept apart."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from project import IMAGES, run_stages, table, tiny
from scipy.spatial.distance import cdist

from conr.clustering.kmeans import kmeans
from conr.data.store import load_manifest, open_store
from conr.errors import Note
from conr.evaluation.agreement import label_scores
from conr.files import copy_whole, save_array, sha256_of
from conr.observer import Observer
from conr.parameters import FinetuneStage, PretrainStage
from conr.pipeline.checks import fit_batches
from conr.pipeline.finetune import finetune
from conr.pipeline.pretrain import pretrain
from conr.pipeline.records import of_embeddings, write_record
from conr.pipeline.workspace import RECORD, Workspace

TRAINED = 1438
CHANGES: dict[str, Any] = {
    "prepare.protocol": "held-out",
    "pretrain.epochs": 1,
    "pretrain.batch_size": 479,  # three batches of what may be trained on
    "finetune.batch_size": 719,  # two
}
PARAMETERS = tiny(CHANGES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, list[int]]:
    """After both training stages; and how many steps they announced."""
    workspace, steps = Workspace.at(tmp_path_factory.mktemp("held-out")), []

    class Counting(Observer):
        @contextmanager
        def task(self, name: str, total: int, done: int = 0) -> Iterator[None]:
            steps.append(total)
            yield

    run_stages(workspace, PARAMETERS, "prepare")
    pretrain(workspace, PretrainStage.of(PARAMETERS), Counting())
    finetune(workspace, FinetuneStage.of(PARAMETERS), Counting())
    return workspace, steps


def test_only_the_training_part_is_trained_on(trained: tuple[Workspace, list[int]]) -> None:
    workspace, steps = trained
    manifest = load_manifest(workspace.store)
    assert (manifest.count, manifest.train_count, manifest.score_start) == (IMAGES, TRAINED, TRAINED)
    pixels = np.load(workspace.store / "images.npy")[:TRAINED] / 255
    np.testing.assert_allclose(manifest.mean, pixels.mean((0, 1, 2)), rtol=1e-9)
    assert steps == [3, 2], "of all 1,797 images there would be three batches more"
    sizes = [int(size) for row in table(workspace.finetuned(0).log) for size in row["cluster_sizes"].split()]
    assert sum(sizes) == TRAINED


def embed_elsewhere(workspace: Workspace, encoder: Path) -> NDArray[np.float32]:
    """Write embeddings of all images as extract would: the held-out ones lie elsewhere."""
    copy_whole(encoder, workspace.encoder)
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(10, 16))
    centers[5:, 0] += 5
    which = np.concatenate([generator.integers(0, 5, TRAINED), generator.integers(5, 10, IMAGES - TRAINED)])
    points = centers[which] + 0.5 * generator.normal(size=(IMAGES, 16))
    units: NDArray[np.float32] = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    made_from = of_embeddings(workspace, load_manifest(workspace.store), 0) | {"encoder": sha256_of(encoder)}
    paths = [workspace.embeddings(), workspace.embeddings(0)]
    for path in paths:
        save_array(path, units)
    write_record(workspace.embedded, paths, [0], made_from, "float32")
    return units


def test_centroids_are_of_the_training_part_and_scores_of_the_test_part(
    trained: tuple[Workspace, list[int]], workspace: Workspace, encoder: Path
) -> None:
    workspace.borrow(trained[0], "artifacts/store", "artifacts/pretrain", "artifacts/finetune")
    embeddings = embed_elsewhere(workspace, encoder)
    run_stages(workspace, PARAMETERS, "evaluate")
    assert "fine-tuned (ConNR)" in workspace.summary.read_text()
    store = open_store(workspace.store)
    assert store.labels is not None

    settings = PARAMETERS.evaluate
    expected = kmeans(
        embeddings[:TRAINED], 10, seed=PARAMETERS.seed, n_init=settings.n_init, max_iter=settings.max_iter
    )
    order = np.argsort(-np.bincount(expected.assignments, minlength=10), kind="stable")
    np.testing.assert_array_equal(np.load(workspace.centroids), expected.centroids[order])
    assert json.loads((workspace.results / RECORD).read_text())["made_from"]["encoder"] == sha256_of(encoder)

    rows = table(workspace.assignments)
    assigned = np.array([int(row["cluster"]) for row in rows])
    assert [row["file"] for row in rows] == store.manifest.files
    np.testing.assert_array_equal(assigned, cdist(embeddings, expected.centroids[order]).argmin(axis=1))
    assert [row["label"] for row in rows] == [store.manifest.class_names[label] for label in store.labels]

    metrics = json.loads(workspace.metrics.read_text())
    scores = label_scores(store.labels[TRAINED:], assigned[TRAINED:])
    assert {name: metrics[name] for name in scores} == pytest.approx(scores, abs=5e-5)
    assert scores["acc"] != pytest.approx(label_scores(store.labels, assigned)["acc"], abs=1e-3)
    assert metrics["images"] == metrics["largest_cluster"] + sum(np.sort(np.bincount(assigned))[:-1]) == IMAGES


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_batch_that_fits_into_all_images_but_not_into_those_to_train_on_is_reduced(
    trained: tuple[Workspace, list[int]], stage: str
) -> None:
    too_large = PARAMETERS.changed({f"{stage}.batch_size": TRAINED + 1})
    message = rf"{stage}\.batch_size = 1439 is larger than the number of images to train on \(1438\); 1438 is used"
    with pytest.warns(Note, match=message):
        fit_batches(too_large, load_manifest(trained[0].store))
