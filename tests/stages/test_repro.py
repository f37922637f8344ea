"""The real `dvc repro`, in a temporary clone, as a user runs it."""

import csv
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from project import copy_tree, run, table, write_params

from conr.pipeline.workspace import RECORD, Workspace
from conr.stages.cli import STAGES

IMAGES = 492  # of the digits: t-SNE and figures of all take longer than the rest of the stages
FEW = {"prepare.imbalance": 60.0, "finetune.batch_size": 128}


def stages_run(output: str) -> list[str]:
    """The stages that DVC says it ran, in order."""
    return re.findall(r"Running stage '(\w+)'", output)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this working tree's files and a tiny preset, after its first `dvc repro`."""
    folder = tmp_path_factory.mktemp("clone") / "conr"
    copy_tree(folder)
    write_params(folder, FEW)
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "config", "user.email", "test@example.org")
    run(folder, "git", "config", "user.name", "test")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "a clone")
    output = run(folder, "dvc", "repro")
    assert stages_run(output) == list(STAGES)
    assert "fine-tuned (ConNR)" in output
    assert "One seed (0): other seeds give other scores" in output
    assert "report       results/report.html" in output
    return folder


def test_results_are_there_and_agree_with_each_other(clone: Path) -> None:
    workspace = Workspace.at(clone)
    metrics = json.loads(workspace.metrics.read_text())
    assert (metrics["images"], metrics["seeds"]) == (IMAGES, 1)
    scores = {"acc", "nmi", "ari", "class_acc", "silhouette", "size_entropy", "feature_std"}
    assert scores <= metrics["pretrained"].keys()
    assert metrics["pretrained"].keys() <= metrics.keys()
    assert not {"std", "seed"} & metrics.keys(), "one seed has no standard deviation"
    assert metrics["gain"]["acc"] == pytest.approx(metrics["acc"] - metrics["pretrained"]["acc"], abs=2e-4)
    rows = table(workspace.assignments)
    sizes = np.bincount([int(row["cluster"]) for row in rows], minlength=10)
    assert len(rows) == IMAGES
    assert sizes.max() == metrics["largest_cluster"] == sizes[0]
    assert all(float(row["own_distance"]) <= float(row["next_distance"]) for row in rows)
    embeddings = np.load(workspace.embeddings(0), mmap_mode="r")
    assert embeddings.shape == (IMAGES, 16)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    record = json.loads((workspace.results / RECORD).read_text())
    encoder = hashlib.sha256(workspace.encoder.read_bytes()).hexdigest()
    centroids = hashlib.sha256(workspace.centroids.read_bytes()).hexdigest()
    embedded = hashlib.sha256(workspace.embeddings(0).read_bytes()).hexdigest()
    assert record == {
        "seeds": [0],
        "made": {"centroids.npy": centroids},
        "made_from": {"encoder": encoder, "embeddings": embedded},
        "clusters": 10,
        "method": "kmeans",
    }
    figures = {path.stem for path in workspace.figures.iterdir()}
    assert figures == {
        "gallery",
        "map",
        "cluster_sizes",
        "confusion",
        "training",
        "neighbor_purity",
        "neighbors",
    }


def test_a_second_run_does_nothing(clone: Path) -> None:
    output = run(clone, "dvc", "repro")
    assert stages_run(output) == []
    assert "Data and pipelines are up to date." in output


def test_a_clean_clone_stays_clean(clone: Path) -> None:
    status = run(clone, "git", "status", "--porcelain")
    assert set(status.split()) <= {"??", "dvc.lock", "results/metrics.json", "results/"}


def test_an_experiment_reruns_only_what_depends_on_it_and_is_shown_beside_its_scores(clone: Path) -> None:
    run(clone, "git", "add", "--all")
    run(clone, "git", "commit", "--quiet", "--message", "results")
    run(clone, "dvc", "exp", "run", "--queue", "-S", "fr=0.7")  # in a copy of the repository
    assert stages_run(run(clone, "dvc", "exp", "run", "--run-all")) == ["finetune", "extract", "evaluate"]
    assert stages_run(run(clone, "dvc", "exp", "run", "-S", "evaluate.n_init=2")) == ["evaluate"]
    shown = list(csv.DictReader(run(clone, "dvc", "exp", "show", "--csv").splitlines()))
    tried = {(row["fr"], row["evaluate.n_init"]) for row in shown}
    assert {("0.8", "3"), ("0.7", "3"), ("0.8", "2")} <= tried
    assert all(0 < float(row["acc"]) <= 1 for row in shown)


def test_a_sweep_draws_the_experiments_that_differ_in_its_parameter_only(clone: Path) -> None:
    run(clone, "git", "checkout", "--quiet", "--", ".")  # back to fr = 0.8 and three initializations
    assert "2 experiments in results/sweeps/fr.png" in run(clone, "conr", "sweep", "fr")
    rows = table(clone / "results/sweeps/fr.csv")
    assert [row["fr"] for row in rows] == ["0.7", "0.8"]
    assert all(0 < float(row[score]) < 1 for row in rows for score in ("acc", "nmi", "ari"))
    assert float(rows[1]["acc"]) == json.loads((clone / "results/metrics.json").read_text())["acc"]

    run(clone, "dvc", "plots", "show", "results/sweeps/fr.png", "--out", "sweep")
    (figure,) = (clone / "sweep/static").iterdir()
    assert figure.read_bytes() == (clone / "results/sweeps/fr.png").read_bytes()
    assert f"static/{figure.name}" in (clone / "sweep/index.html").read_text()


def test_plots_show_losses_scores_purity_confusion_and_sizes(clone: Path) -> None:
    run(clone, "dvc", "plots", "show", "--out", "plots")
    page = (clone / "plots/index.html").read_text()
    for title in (
        "Loss (BYOL, then ConNR)",
        "Scores during ConNR",
        "Feature std and size entropy of the clusters during ConNR",
        "Share of the K nearest neighbors",
        "Labels against matched clusters",
        "Cluster sizes",
    ):
        assert title in page
    assert len(list((clone / "plots/static").glob("*gallery.png"))) == 1
