"""The Makefile's commands on a download without git."""

import subprocess
from pathlib import Path

import pytest
from project import ROOT

STUB = """#!/bin/sh
echo "$@" >> dvc.calls
"""


@pytest.mark.parametrize(("git", "calls"), [(True, ["repro"]), (False, ["config --local core.no_scm true", "repro"])])
def test_dvc_does_not_look_for_git_where_there_is_none(tmp_path: Path, git: bool, calls: list[str]) -> None:
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/dvc").write_text(STUB)
    (environment / "bin/dvc").chmod(0o755)
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    for name in ("pyproject.toml", "constraints.txt", "ready"):  # the environment is newer than what it depends on
        (tmp_path / name).touch()
    (tmp_path / "results").mkdir()
    (tmp_path / "results/summary.txt").write_text("the scores")
    if git:
        (tmp_path / ".git").mkdir()
    command = ["make", "run", f"ENVIRONMENT={environment}", "READY=ready"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "the scores" in done.stdout
    assert (tmp_path / "dvc.calls").read_text().splitlines() == calls
