"""The commands of docs/gpu.md for Table 2 at toy size: an interruption changes nothing, finished runs are kept."""

import csv
import os
import shutil
import signal
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from common import set_values
from forked import run_conr, start_conr
from PIL import Image

pytestmark = pytest.mark.bench

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
    "optimizer.schedule_epochs": 9,
    "pretrain.epochs": 3,
    "pretrain.batch_size": 40,
    "finetune.epochs": 6,  # one is saved long before the last ends
    "finetune.batch_size": 40,
    "evaluate.n_init": 2,
    "evaluate.context": 40,
}


def conr(folder: Path, *arguments: str) -> str:
    """Run a command in a folder; returns what it prints."""
    done = run_conr(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scores(project: Path) -> list[dict[str, str]]:
    """The runs without what depends on the clock."""
    with (project / "results/ablation/runs.csv").open(newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after rows 1 and 7 with two seeds, on a few images in folders like CIFAR-10's."""
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
    printed = conr(folder / "table2", *ABLATE, "0,1")
    assert (folder / "table2/results/ablation/table.md").read_text() in printed
    return folder / "table2"


def test_table_and_curves_show_the_runs(project: Path) -> None:
    table = (project / "results/ablation/table.md").read_text()
    rows, names = scores(project), ["InC", "InC + ConAff + OBD + PR"]
    assert [(row["row"], row["seed"]) for row in rows] == [(name, seed) for name in names for seed in "01"]
    for name, line in zip(names, table.splitlines()[2:], strict=False):
        cells = [cell.split(" ± ") for cell in line.split(" | ") if " ± " in cell]
        for key, (mean, std) in zip(("nmi", "acc", "ari"), cells, strict=True):
            found = [100 * float(row[key]) for row in rows if row["row"] == name]
            assert (float(mean), float(std)) == pytest.approx((fmean(found), stdev(found)), abs=0.06)
    assert "\nLast run on " in table
    assert (project / "results/ablation/curves.png").stat().st_size > 10_000
    assert len(list(project.rglob("log.csv"))) == 6, "the rows share the pretraining"


def test_an_interrupted_run_resumes_with_another_seed_repeats_nothing_and_ends_alike(
    project: Path, tmp_path: Path
) -> None:
    shutil.copy(project / "params.yaml", tmp_path)
    (tmp_path / "artifacts").symlink_to(project / "artifacts")
    experiments, errors = tmp_path / ".conr/experiments", tmp_path / "errors"
    command = start_conr(tmp_path, *ABLATE, "0", output=tmp_path / "output", errors=errors)
    saved = "finetune-*/.conr/checkpoints/*/state.pt"
    while not (list(experiments.glob("finetune-*/scores.json")) and list(experiments.glob(saved))):
        command.join(timeout=0.02)
        assert command.exitcode is None, "it ended before an epoch of the second row was saved"
    assert command.pid is not None
    os.kill(command.pid, signal.SIGTERM)
    command.join(timeout=60)
    assert command.exitcode == 128 + signal.SIGTERM
    assert "run the same command to resume" in errors.read_text()
    assert list(experiments.glob(saved)), "the saved epochs are there"
    finished = {path: path.stat().st_mtime_ns for path in experiments.rglob("log.csv")}
    assert len(finished) == 2, "the pretraining and a row"
    conr(tmp_path, *ABLATE, "0,1")
    assert scores(tmp_path) == scores(project)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
