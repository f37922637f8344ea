"""A new project: the files that `dvc repro` needs, in a folder of their own."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from conr.errors import UserError
from conr.pipeline import params_file
from conr.pipeline.presets import next_step, preset_file

TEMPLATE = Path(__file__).parents[1] / "template"
# Under other names: DVC takes every dvc.yaml below a project, one in an installed package too, for part of it.
FILES = {"pipeline.yaml": "dvc.yaml", "gitignore": ".gitignore", "cluster_names.csv": "cluster_names.csv"}
SETTINGS = (("core.analytics", "false"), ("core.check_update", "false"))


def make(folder: Path, preset: str, git: bool = True) -> str:
    """Write params.yaml, dvc.yaml and .gitignore into a new or empty folder, and make it a git and DVC repository.

    Args:
        folder: the project's.
        preset: what params.yaml starts from.
        git: whether to make it a git repository, which DVC's experiments need.

    Returns:
        What was made and what to do next.

    Raises:
        UserError: the folder is not empty, there is no such preset, or git or DVC fails.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; name a new one")
    source = preset_file(preset)
    parameters = params_file.read(source)
    if git and shutil.which("git") is None:
        raise UserError("git is not installed; install it, or make a project without it: --no-git")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / params_file.NAME).write_bytes(source.read_bytes())
    for template, name in FILES.items():
        (folder / name).write_bytes((TEMPLATE / template).read_bytes())
    for name in ("images", "backbones"):
        (folder / name).mkdir()
        (folder / name / ".gitkeep").touch()
    if git:
        _run(folder, "git", "init", "--quiet")
    _run(folder, sys.executable, "-m", "dvc", "init", *([] if git else ["--no-scm"]))
    for name, value in SETTINGS:
        _run(folder, sys.executable, "-m", "dvc", "config", name, value)
    experiments = "\nBefore dvc exp run: git add --all && git commit -m project" if git else ""
    there = f"{folder} is a project with the preset {preset}. Go there: cd {shlex.quote(str(folder))}"
    return f"{there}\n{next_step(parameters)}{experiments}"


def _run(folder: Path, *command: str) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise UserError(f"{' '.join(command)} failed in {folder}: {result.stderr.strip()}")
