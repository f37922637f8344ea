"""The held-out protocol: what is trained on, what k-means sees and what is scored are kept apart."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from project import run_conr, write_params

from conr.clustering import distances_to, kmeans
from conr.data.store import Store, open_store
from conr.metrics import label_scores
from conr.parameters import EvaluateStage, FinetuneStage, ParamsFile, PretrainStage
from conr.progress import Advance, silent
from stages import evaluate, finetune, params_file, pretrain
from stages.paths import (
    ASSIGNMENTS,
    CENTROIDS,
    CLUSTERED,
    EMBEDDED,
    EMBEDDINGS,
    FINETUNE_LOG,
    METRICS,
    PRETRAINED_EMBEDDINGS,
    STORE,
)

TRAINED, ALL = 1438, 1797
CHANGES: dict[str, Any] = {
    "prepare": {"protocol": "held-out"},
    "pretrain": {"epochs": 1, "batch_size": 479},  # three batches of what may be trained on
    "finetune": {"epochs": 1, "batch_size": 719},  # two
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose images are packed."""
    folder = tmp_path_factory.mktemp("held-out")
    write_params(folder, CHANGES)
    result = run_conr(folder, "prepare")
    assert result.returncode == 0, result.stderr
    assert "1,438 to train on, 359 to score" in result.stdout
    return folder


@pytest.fixture
def params(packed: Path, monkeypatch: pytest.MonkeyPatch) -> ParamsFile:
    """The project's parameters, in its folder."""
    monkeypatch.chdir(packed)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return params_file.validated(params_file.read())


def test_only_the_training_part_is_trained_on(packed: Path, params: ParamsFile) -> None:
    manifest = json.loads((packed / STORE / "manifest.json").read_text())
    assert (manifest["count"], manifest["train_count"], manifest["score_start"]) == (ALL, TRAINED, TRAINED)
    pixels = np.load(packed / STORE / "images.npy")[:TRAINED] / 255
    np.testing.assert_allclose(manifest["mean"], pixels.mean((0, 1, 2)), rtol=1e-9)

    steps = []

    @contextmanager
    def counting(description: str, total: int, done: int = 0) -> Iterator[Advance]:
        steps.append(total)
        with silent(description, total, done) as advance:
            yield advance

    pretrain.run(
        PretrainStage.model_validate({name: getattr(params, name) for name in PretrainStage.model_fields}), counting
    )
    finetune.run(
        FinetuneStage.model_validate({name: getattr(params, name) for name in FinetuneStage.model_fields}), counting
    )
    assert steps == [3, 2], "of all 1,797 images there would be three batches more"
    with (packed / FINETUNE_LOG).open() as file:
        sizes = [int(size) for row in csv.DictReader(file) for size in row["cluster_sizes"].split()]
    assert sum(sizes) == TRAINED


@pytest.fixture
def embeddings(params: ParamsFile) -> NDArray[np.float32]:
    """Embeddings of all images, written where extract would: the held-out ones lie elsewhere."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(10, 16))
    centres[5:, 0] += 5
    which = np.concatenate([generator.integers(0, 5, TRAINED), generator.integers(5, 10, ALL - TRAINED)])
    points = centres[which] + 0.5 * generator.normal(size=(ALL, 16))
    units: NDArray[np.float32] = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    EMBEDDINGS.parent.mkdir(parents=True, exist_ok=True)
    for path in (EMBEDDINGS, PRETRAINED_EMBEDDINGS):
        np.save(path, units)
    EMBEDDED.write_text(json.dumps({"seeds": [params.seed], "precision": "float32", "encoder": "of these"}))
    return units


def test_centroids_are_of_the_training_part_and_scores_of_the_test_part(
    params: ParamsFile, embeddings: NDArray[np.float32]
) -> None:
    summary = evaluate.run(
        EvaluateStage.model_validate({name: getattr(params, name) for name in EvaluateStage.model_fields}), silent
    )
    assert "fine-tuned (ConNR)" in summary
    store: Store = open_store(STORE)
    assert store.labels is not None

    settings = params.evaluate
    expected = kmeans(
        embeddings[:TRAINED], 10, seed=params.seed, restarts=settings.restarts, iterations=settings.iterations
    )
    order = np.argsort(-np.bincount(expected.assignments, minlength=10), kind="stable")
    np.testing.assert_array_equal(np.load(CENTROIDS), expected.centroids[order])
    assert json.loads(CLUSTERED.read_text()) == {"encoder": "of these"}

    with ASSIGNMENTS.open() as file:
        rows = list(csv.DictReader(file))
    assigned = np.array([int(row["cluster"]) for row in rows])
    assert [row["file"] for row in rows] == store.manifest.files
    np.testing.assert_array_equal(assigned, distances_to(embeddings, expected.centroids[order]).argmin(axis=1))
    assert [row["label"] for row in rows] == [store.manifest.class_names[label] for label in store.labels]

    metrics = json.loads(METRICS.read_text())
    scores = label_scores(store.labels[TRAINED:], assigned[TRAINED:])
    assert {name: metrics[name] for name in scores} == pytest.approx(scores, abs=5e-5)
    assert scores["acc"] != pytest.approx(label_scores(store.labels, assigned)["acc"], abs=1e-3)
    assert metrics["images"] == metrics["largest_cluster"] + sum(np.sort(np.bincount(assigned))[:-1]) == ALL


def test_a_batch_that_fits_into_all_images_but_not_into_those_to_train_on_is_refused(packed: Path) -> None:
    for stage in ("pretrain", "finetune"):
        result = run_conr(packed, stage, "--batch-size", "1439")
        assert result.returncode == 2, result.stderr
        assert f"{stage}.batch_size = 1439 is larger than the number of images to train on (1438)" in result.stderr
