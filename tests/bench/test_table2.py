"""The commands of docs/gpu.md for Table 2 at toy size: an interruption changes nothing, finished runs are kept."""

import csv
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from common import set_values
from PIL import Image

pytestmark = pytest.mark.bench

CONR = Path(sys.executable).with_name("conr")
ABLATE = ("ablate", "--rows", "1,7", "--jobs", "1", "--seeds")
IMAGES = 120
TINY = {
    "device": "cpu",
    "k": 5,
    "k1": 5,
    "prepare.image_size": 16,
    "network.width": 4,
    "network.hidden": 32,
    "network.dimension": 16,
    "optimizer.warmup_epochs": 1,
    "optimizer.schedule_epochs": 5,
    "pretrain.epochs": 3,
    "pretrain.batch_size": 40,
    "finetune.epochs": 2,
    "finetune.batch_size": 40,
    "evaluate.n_init": 2,
    "evaluate.context": 40,
}


def conr(folder: Path, *arguments: str) -> str:
    """Run a command in a folder; returns what it prints."""
    return subprocess.run([CONR, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def scores(project: Path) -> list[dict[str, str]]:
    """The runs without what depends on the clock."""
    with (project / "results/ablation/runs.csv").open(newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after rows 1 and 7 with one seed, on a few images in folders like CIFAR-10's."""
    folder = tmp_path_factory.mktemp("table2")
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        split, name = "test" if number % 6 == 0 else "train", number % 10
        path = folder / f"cifar10/{split}/class{name}/{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = np.array([18 * name, 195 - 18 * name, 60 * (name % 3)])
        Image.fromarray((random.integers(0, 60, (32, 32, 3)) + shade).astype(np.uint8)).save(path)
    conr(folder, "new", "table2", "--preset", "cifar10-200")
    set_values(folder / "table2/params.yaml", TINY)
    conr(folder / "table2", "prepare", "--source", "folder", "--path", str(folder / "cifar10"), "--labels", "parent")
    printed = conr(folder / "table2", *ABLATE, "0")
    assert (folder / "table2/results/ablation/table.md").read_text() in printed
    return folder / "table2"


def test_table_and_curves_show_the_runs(project: Path) -> None:
    table = (project / "results/ablation/table.md").read_text()
    assert [row["row"] for row in scores(project)] == ["InC", "InC + ConAff + OBD + PR"]
    for row in scores(project):
        assert f"| {' | '.join(f'{100 * float(row[key]):.1f}' for key in ('nmi', 'acc', 'ari'))} |" in table
    assert "\nLast run on " in table
    assert (project / "results/ablation/curves.png").stat().st_size > 10_000


def test_an_interrupted_run_resumes_and_ends_alike(project: Path, tmp_path: Path) -> None:
    shutil.copy(project / "params.yaml", tmp_path)
    (tmp_path / "artifacts").symlink_to(project / "artifacts")
    saved = ".conr/experiments/*/.conr/checkpoints/*/state.pt"
    command = subprocess.Popen([CONR, *ABLATE, "0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(saved)):
        assert command.poll() is None, "it ended before an epoch was saved"
        time.sleep(0.02)
    command.terminate()
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 128 + signal.SIGTERM
    assert "run the same command to resume" in errors
    assert list(tmp_path.glob(saved)), "the saved epochs are there"
    conr(tmp_path, *ABLATE, "0")
    assert scores(tmp_path) == scores(project)


def test_another_seed_repeats_no_finished_run(project: Path) -> None:
    logs = {path: path.stat().st_mtime_ns for path in project.rglob("log.csv")}
    before = scores(project)
    assert len(logs) == 3, "the rows share the pretraining"
    conr(project, *ABLATE, "0,1")
    assert {path: path.stat().st_mtime_ns for path in logs} == logs
    assert len(list(project.rglob("log.csv"))) == 6
    assert [row for row in scores(project) if row["seed"] == "0"] == before
