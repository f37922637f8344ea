"""conr --version; conr info, whatever the folder and the libraries are like."""

import importlib.metadata
import json
import platform
import sys
from pathlib import Path

import pytest
import torch
from forked import run_conr

import conr
from conr.pipeline import environment as module
from conr.pipeline.environment import PACKAGES, environment, without_home
from conr.pipeline.workspace import Workspace
from conr.stages.cli import STAGES


def test_the_version_is_one_line(tmp_path: Path) -> None:
    told = run_conr(tmp_path, "--version")
    assert (told.returncode, told.stdout) == (0, f"conr {conr.__version__}\n")


def test_outside_of_a_project_all_sections_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    told = run_conr(tmp_path, "info")
    assert (told.returncode, told.stderr) == (0, "")
    lines = told.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["versions", "machine", "threads", "paths", "stages"]
    facts = {line[2:18].rstrip(): line[19:] for line in lines if line.startswith("  ")}
    assert facts["conr"] == str(Path(conr.__file__).parent)  # of the paths
    assert facts["torch"] == str(torch.get_num_threads())
    assert facts["OMP_NUM_THREADS"] == "3"
    assert facts["DVC cache"].startswith("unknown (NotDvcRepoError: ")
    assert "CPUExecutionProvider" in facts["onnxruntime"]
    assert [line.split() for line in lines[-len(STAGES) :]] == [[name, "not", "run"] for name in STAGES]


def test_json_holds_the_same(finished: Workspace) -> None:
    told = run_conr(finished.root, "info", "--json")
    facts = json.loads(told.stdout)
    assert [*facts] == ["versions", "machine", "threads", "paths", "stages", "wrong"]
    assert facts["versions"]["conr"] == conr.__version__
    assert facts["versions"]["Python"] == platform.python_version()
    for name in PACKAGES:
        assert facts["versions"][name] == importlib.metadata.version(name)
    assert facts["paths"]["project"] == str(finished.root)
    assert [stage["state"] for stage in facts["stages"]] == ["complete"] * len(STAGES)
    assert facts["wrong"] == []


def test_a_damaged_project_is_told_of_and_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("k: [1,")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core")
    (tmp_path / "artifacts").write_text("a file")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/record.json").write_bytes(b"\xff\x00")
    told = run_conr(tmp_path, "info")
    assert (told.returncode, told.stderr) == (0, "")
    assert "  DVC cache        unknown (ConfigError: " in told.stdout
    assert told.stdout.partition("wrong\n")[2].startswith("  results/record.json is missing or damaged (")


def test_libraries_that_cannot_be_loaded_are_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("torch", "onnxruntime", "dvc.repo"):
        monkeypatch.setitem(sys.modules, name, None)
    facts = environment(Workspace.at(tmp_path))
    for section, name in (("machine", "devices"), ("machine", "onnxruntime"), ("threads", "torch")):
        assert facts[section][name].startswith("unknown (ModuleNotFoundError: import of ")
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_packages_that_are_missing_are_named_and_extras_only_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("no-such-package",))
    monkeypatch.setattr(module, "OTHERS", ("neither-this-one", "numpy"))
    versions = environment(Workspace())["versions"]
    assert [*versions] == ["conr", "commit", "Python", "no-such-package", "numpy"]
    assert versions["no-such-package"] == "not installed"


@pytest.mark.parametrize(
    ("content", "cores"), [("max 100000\n", "none"), ("150000 100000\n", "1.5 cores"), ("x", "unknown (ValueError: ")]
)
def test_the_cores_of_a_container_are_told(
    content: str, cores: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(content)
    monkeypatch.setattr(module, "CPU_QUOTA", tmp_path / "cpu.max")
    assert environment(Workspace())["threads"]["CPU quota"].startswith(cores)


def test_the_home_folder_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jane")
    assert without_home("/home/jane/photos, /home/jane") == "~/photos, ~"
    assert without_home("/home/janet/x /mnt/home/jane/x") == "/home/janet/x /mnt/home/jane/x"
    monkeypatch.setenv("HOME", "/")
    assert without_home("/data/x") == "/data/x"


def test_variables_that_may_be_secret_are_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("RAY_ADDRESS", "hush:1")
    assert "hush" not in run_conr(tmp_path, "info").stdout
