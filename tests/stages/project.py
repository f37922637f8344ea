"""A small project, and the real command line in it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

TINY: dict[str, Any] = {
    "device": "cpu",
    "network": {"width": 4, "hidden": 32, "dimension": 16},
    "optimiser": {"warmup_epochs": 1, "schedule_epochs": 10},
    "pretrain": {"epochs": 2},
    "finetune": {"epochs": 2},
    "evaluate": {"restarts": 3, "gallery": 4},
}

Conr = Callable[..., subprocess.CompletedProcess[str]]


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, the second over the first."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) and key in result else value
    return result


def write_params(folder: Path, changes: dict[str, Any] | None = None) -> None:
    """The digits preset, made tiny, with changes."""
    base = yaml.safe_load((ROOT / "presets/digits.yaml").read_text())
    content = merged(merged(base, TINY), changes or {})
    (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def run_conr(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the installed `conr` in a folder, as a user would."""
    command = [str(BIN / "conr"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def run(folder: Path, *command: str) -> str:
    """Run a command of the environment in a folder, assert that it succeeds, and return what it printed."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
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
