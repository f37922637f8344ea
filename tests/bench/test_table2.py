"""Table 2 in slices, at toy size: an interruption changes nothing, and what is finished is not run again."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from stages import params_file

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, dict[str, Any]] = {
    "network": {"width": 4, "hidden": 32, "dimension": 16},
    "optimiser": {"warmup_epochs": 1, "schedule_epochs": 8},
    "pretrain": {"epochs": 3, "batch_size": 64},
    "finetune": {"epochs": 5, "batch_size": 64},
    "evaluate": {"restarts": 2},
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 300 images in an archive like CIFAR-10's, and a tiny params file."""
    folder = tmp_path_factory.mktemp("table2")
    random = np.random.default_rng(0)
    for number in range(300):
        split, name = ("test", 5) if number % 6 == 0 else ("train", 25), number % 10
        path = folder / f"cifar10-jpeg/{split[0]}/class{name}/{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = np.array([18 * name, 195 - 18 * name, 60 * (name % 3)])
        Image.fromarray((random.integers(0, 60, (32, 32, 3)) + shade).astype(np.uint8)).save(path)
    with tarfile.open(folder / "images.tar.gz", "w:gz") as archive:
        archive.add(folder / "cifar10-jpeg", "cifar10-jpeg")
    params = yaml.safe_load((ROOT / "presets/cifar10-200.yaml").read_text()) | {"device": "cpu"}
    for group, changes in TINY.items():
        params[group] |= changes
    (folder / "toy.yaml").write_text(yaml.safe_dump(params))
    return folder


def start(toy: Path, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a slice with rows 1 and 7 and one seed."""
    command = [sys.executable, str(ROOT / "bench/table2.py"), "--preset", "toy.yaml", "--archive", "images.tar.gz"]
    command += ["--seeds", "0", "--rows", "1", "7", "--state", str(folder / "state"), "--results"]
    return subprocess.Popen(
        [*command, str(folder / "results"), *arguments],
        cwd=toy,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a slice, and return what it printed."""
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return printed


def runs(folder: Path) -> list[dict[str, Any]]:
    """The finished runs without what depends on the clock."""
    found = json.loads((folder / "results/toy.json").read_text())["runs"]
    for run in found:
        run.pop("seconds")
        for epoch in [*run["pretraining"], *run["curve"]]:
            epoch.pop("seconds")
    return found


@pytest.fixture(scope="module")
def whole(toy: Path) -> Path:
    """What one slice that was long enough leaves."""
    assert "0 of 2 runs are missing" in finish(start(toy, toy / "whole"))
    return toy / "whole"


def test_table_and_curves_show_the_runs(whole: Path) -> None:
    table = (whole / "results/toy.md").read_text()
    first, last = runs(whole)
    assert (first["row"], last["row"]) == ("InC", "InC + ConAff + OBD + PR")
    for run, paper in ((first, "87.8"), (last, "93.2")):
        acc, nmi, ari = (f"{100 * run['finetuned'][score]:.1f}" for score in ("acc", "nmi", "ari"))
        assert f"| {run['row']} | {acc} / {nmi} / {ari} | {acc} | {nmi} | {ari} |" in table
        assert f"| {paper} |" in table
    assert first["pretraining"] == last["pretraining"], "the rows share the pretraining"
    assert [row["epoch"] for row in first["pretraining"] + first["curve"]] == list(range(1, 9))
    assert (whole / "results/toy.png").stat().st_size > 10_000
    assert [path.name for path in (whole / "state").iterdir()] == ["artifacts"], "finished weights are not kept"


def test_an_interrupted_slice_goes_on_and_ends_alike(toy: Path, whole: Path, tmp_path: Path) -> None:
    process = start(toy, tmp_path)
    while not list(tmp_path.glob("state/toy-0/.conr/experiments/finetune-*/checkpoint/state.pt")):
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
        assert process.returncode is None, "the slice ended before it saved a checkpoint"
    process.send_signal(signal.SIGTERM)
    assert "runs are missing; go on" in finish(process)
    assert "0 of 2 runs are missing" in finish(start(toy, tmp_path))
    assert runs(tmp_path) == runs(whole)


def test_finished_runs_are_not_run_again(toy: Path, whole: Path) -> None:
    before = (whole / "results/toy.json").read_bytes()
    assert "0 of 2 runs are missing" in finish(start(toy, whole, "--minutes", "0"))
    assert (whole / "results/toy.json").read_bytes() == before


def test_results_of_other_parameters_are_refused(toy: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    from table2 import Kept

    params = params_file.validated(params_file.read(toy / "toy.yaml"))
    assert len(Kept(whole / "results/toy", params).runs) == 2
    with pytest.raises(SystemExit, match="was made with other parameters"):
        Kept(whole / "results/toy", params_file.changed(params, {"fr": 0.7}))
