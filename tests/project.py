"""A small project: the digits preset made tiny, its stages in this process, and the real command line."""

import csv
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from forked import run_conr
from ruamel.yaml import YAML

from conr.parameters import STAGES, Parameters
from conr.pipeline.presets import load_preset
from conr.pipeline.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

DIGITS = load_preset("digits")
TINY: dict[str, Any] = {
    "device": "cpu",
    "network.width": 4,
    "network.hidden": 32,
    "network.dimension": 16,
    "optimizer.warmup_epochs": 1,
    "optimizer.schedule_epochs": 10,
    "pretrain.epochs": 2,
    "finetune.epochs": 1,
    "evaluate.n_init": 3,
    "evaluate.gallery": 4,
}
IMAGES = 1797
ARRANGED = 200  # which takes t-SNE a tenth of the time
SEEDS = [4, 3]  # of the finished run
FINISHED: dict[str, Any] = {"seed": 3, "seeds": SEEDS}


def tiny(changes: Mapping[str, Any] | None = None) -> Parameters:
    """The digits preset, made tiny, with changes by dotted key."""
    return DIGITS.changed({**TINY, **(changes or {})})


def write_params(folder: Path, changes: Mapping[str, Any] | None = None) -> None:
    """The same as params.yaml of a folder, possible or not."""
    content = DIGITS.model_dump()
    for key, value in {**TINY, **(changes or {})}.items():
        *groups, name = key.split(".")
        group = content
        for part in groups:
            group = group.setdefault(part, {})
        group[name] = value
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(content, folder / "params.yaml")


def run_stages(workspace: Workspace, parameters: Parameters, *names: str) -> None:
    """Run the bodies of stages, by default of all, in this process; t-SNE arranges a part of the images only."""
    for name in names or STAGES:
        body = getattr(importlib.import_module(f"conr.pipeline.{name}"), name)
        fewer = mock.patch("conr.evaluation.plane.MAP_POINTS", ARRANGED) if name == "evaluate" else nullcontext()
        with fewer:
            body(workspace, STAGES[name].of(parameters))


def refused(folder: Path, *arguments: str) -> str:
    """Run `conr`, assert that it refuses with exit code 2 and no stack trace, and return the message on one line."""
    result = run_conr(folder, *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.replace("│", " ").split())


def run(folder: Path, *command: str, bin_folder: Path = BIN) -> str:
    """Run a command of the environment in a folder, assert that it succeeds, and return what it printed."""
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def copy_tree(folder: Path) -> None:
    """Copy this working tree's files as a clone would have them, without what a run has made."""
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in listed.split("\0"):
        made_by_a_run = name == "dvc.lock" or name.startswith("results/")
        if (ROOT / name).is_file() and not made_by_a_run:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))
