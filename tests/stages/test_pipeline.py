"""The real `dvc repro`, in a temporary clone, as a user runs it."""

import csv
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from project import copy_tree, run, write_params

STAGES = ["prepare", "pretrain", "finetune", "extract", "evaluate"]


def stages_run(output: str) -> list[str]:
    """The stages that DVC says it ran, in order."""
    return re.findall(r"Running stage '(\w+)'", output)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this working tree's files and a tiny preset, after its first `dvc repro`."""
    folder = tmp_path_factory.mktemp("clone") / "conr"
    copy_tree(folder)
    write_params(folder)
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "config", "user.email", "test@example.org")
    run(folder, "git", "config", "user.name", "test")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "a clone")
    output = run(folder, "dvc", "repro")
    assert stages_run(output) == STAGES
    assert "fine-tuned (ConNR)" in output
    assert "One seed (0): other seeds give other scores" in output
    assert "report       results/report.html" in output
    return folder


def test_results_are_there_and_belong_together(clone: Path) -> None:
    metrics = json.loads((clone / "results/metrics.json").read_text())
    assert (metrics["images"], metrics["seeds"]) == (1797, 1)
    assert {"acc", "nmi", "ari", "class_acc", "silhouette", "balance", "spread"} <= metrics["pretrained"].keys()
    assert metrics["pretrained"].keys() <= metrics.keys()
    assert not {"deviation", "seed"} & metrics.keys(), "one seed has no deviation"
    assert metrics["gain"]["acc"] == pytest.approx(metrics["acc"] - metrics["pretrained"]["acc"], abs=2e-4)
    with (clone / "results/assignments.csv").open() as file:
        rows = list(csv.DictReader(file))
    sizes = np.bincount([int(row["cluster"]) for row in rows], minlength=10)
    assert len(rows) == 1797
    assert sizes.max() == metrics["largest_cluster"] == sizes[0]
    assert all(float(row["own_distance"]) <= float(row["next_distance"]) for row in rows)
    embeddings = np.load(clone / "artifacts/embeddings/finetuned.npy", mmap_mode="r")
    assert embeddings.shape == (1797, 16)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    centroids = json.loads((clone / "results/centroids.json").read_text())
    assert centroids == {"encoder": hashlib.sha256((clone / "artifacts/encoder.onnx").read_bytes()).hexdigest()}
    figures = {path.stem for path in (clone / "results/figures").iterdir()}
    assert figures == {
        "gallery",
        "map",
        "cluster_sizes",
        "confusion",
        "training",
        "neighbour_purity",
        "neighbours",
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
    assert stages_run(run(clone, "dvc", "exp", "run", "-S", "fr=0.7")) == ["finetune", "extract", "evaluate"]
    assert stages_run(run(clone, "dvc", "exp", "run", "-S", "evaluate.restarts=2")) == ["evaluate"]
    table = list(csv.DictReader(run(clone, "dvc", "exp", "show", "--csv").splitlines()))
    tried = {(row["fr"], row["evaluate.restarts"]) for row in table}
    assert {("0.8", "3"), ("0.7", "3"), ("0.7", "2")} <= tried
    assert all(0 < float(row["acc"]) <= 1 for row in table)


def test_a_sweep_draws_the_experiments_that_differ_in_its_parameter_only(clone: Path) -> None:
    run(clone, "git", "checkout", "--quiet", "--", ".")  # back to fr = 0.8 and three restarts
    run(clone, "dvc", "exp", "run", "--queue", "-S", "fr=0.9")
    assert stages_run(run(clone, "dvc", "exp", "run", "--run-all")) == ["finetune", "extract", "evaluate"]
    assert "3 experiments in results/sweeps/fr.png" in run(clone, "conr", "sweep", "fr")
    with (clone / "results/sweeps/fr.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["fr"] for row in rows] == ["0.7", "0.8", "0.9"]
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
        "Spread of the features and balance of the clusters during ConNR",
        "Share of the K nearest neighbours",
        "Labels against matched clusters",
        "Cluster sizes",
    ):
        assert title in page
    assert len(list((clone / "plots/static").glob("*gallery.png"))) == 1


def test_without_labels_it_says_what_cannot_be_known(clone: Path) -> None:
    params = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(params.replace("labels: dataset", "labels: none"))
    output = run(clone, "dvc", "repro")
    assert output.count("There are no labels") == 1
    metrics = json.loads((clone / "results/metrics.json").read_text())
    assert "acc" not in metrics
    assert set(metrics["gain"]) == {"silhouette", "balance"}
    assert "label" not in (clone / "results/assignments.csv").read_text().splitlines()[0]
    centroids = json.loads((clone / "results/centroids.json").read_text())
    assert centroids == {"encoder": hashlib.sha256((clone / "artifacts/encoder.onnx").read_bytes()).hexdigest()}
    figures = {path.stem for path in (clone / "results/figures").iterdir()}
    assert figures == {"gallery", "map", "cluster_sizes", "training", "neighbours"}
    assert len((clone / "results/plots/neighbour_purity.csv").read_text().splitlines()) == 1, "a header without rows"
    run(clone, "dvc", "plots", "show", "--out", "plots")
