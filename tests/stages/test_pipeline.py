"""The real `dvc repro`, in a temporary clone, as a user runs it."""

import csv
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from project import BIN, ROOT, write_params

STAGES = ["prepare", "pretrain", "finetune", "extract", "evaluate"]


def run(folder: Path, *command: str) -> str:
    """Run a command of the environment in a folder and return what it printed."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def stages_run(output: str) -> list[str]:
    """The stages that DVC says it ran, in order."""
    return re.findall(r"Running stage '(\w+)'", output)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this working tree's files and a tiny preset, after its first `dvc repro`."""
    folder = tmp_path_factory.mktemp("clone") / "conr"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.split("\0"):
        made_by_a_run = name == "dvc.lock" or name.startswith("results/")
        if (ROOT / name).is_file() and not made_by_a_run:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    write_params(folder)
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "config", "user.email", "test@example.org")
    run(folder, "git", "config", "user.name", "test")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "a clone")
    output = run(folder, "dvc", "repro")
    assert stages_run(output) == STAGES
    assert "fine-tuned (ConNR)" in output
    assert "report       results/report.html" in output
    return folder


def test_results_are_there_and_belong_together(clone: Path) -> None:
    metrics = json.loads((clone / "results/metrics.json").read_text())
    assert metrics["images"] == 1797
    assert metrics["gain"]["acc"] == pytest.approx(metrics["acc"] - metrics["pretrained"]["acc"], abs=1e-4)
    with (clone / "results/assignments.csv").open() as file:
        rows = list(csv.DictReader(file))
    sizes = np.bincount([int(row["cluster"]) for row in rows], minlength=10)
    assert len(rows) == 1797
    assert sizes.max() == metrics["largest_cluster"] == sizes[0]
    assert all(float(row["own_distance"]) <= float(row["next_distance"]) for row in rows)
    embeddings = np.load(clone / "artifacts/embeddings/finetuned.npy", mmap_mode="r")
    assert embeddings.shape == (1797, 16)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
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


def test_plots_show_losses_scores_confusion_and_sizes(clone: Path) -> None:
    run(clone, "dvc", "plots", "show", "--out", "plots")
    page = (clone / "plots/index.html").read_text()
    for title in ("Loss (BYOL, then ConNR)", "Scores during ConNR", "Labels against matched clusters", "Cluster sizes"):
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
    assert not (clone / "results/figures/confusion.png").exists()
    run(clone, "dvc", "plots", "show", "--out", "plots")
