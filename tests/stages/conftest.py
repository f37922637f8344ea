"""Fixtures of the tests that run the command line."""

import subprocess
from pathlib import Path

import pytest
from project import Conr, run_conr, write_params


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a tiny params.yaml."""
    write_params(tmp_path)
    return tmp_path


@pytest.fixture
def conr(project: Path) -> Conr:
    """The command line, in the project's folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_conr(project, *arguments)

    return run
