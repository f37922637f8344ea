"""conr new: a folder in which DVC plans all stages, outside the repository; or nothing at all."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from project import ROOT, run
from ruamel.yaml import YAML

from conr.errors import UserError
from conr.pipeline.params_file import read
from conr.pipeline.presets import FOLDER, load_preset, preset_file
from conr.pipeline.project import TEMPLATE, make
from conr.stages.cli import STAGES


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe").load(path)
    return content


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A new project, and what was said of it."""
    folder = tmp_path_factory.mktemp("somewhere") / "deep/photos"
    return folder, make(folder, "folder")


def test_a_project_has_parameters_a_pipeline_and_a_folder_for_images(made: tuple[Path, str]) -> None:
    folder, said = made
    assert (folder / "params.yaml").read_bytes() == preset_file("folder").read_bytes()
    assert read(folder / "params.yaml") == load_preset("folder")
    assert load(folder / "dvc.yaml") == load(TEMPLATE / "pipeline.yaml")
    for name in ("images", "backbones"):
        assert [path.name for path in (folder / name).iterdir()] == [".gitkeep"]
    names = {".git", ".gitignore", ".dvc", ".dvcignore", "params.yaml", "dvc.yaml", "images", "backbones"}
    names.add("cluster_names.csv")
    assert {path.name for path in folder.iterdir()} == names
    assert said.startswith(f"{folder} is a project with the preset folder. Go there: cd {folder}\n")
    assert "set prepare.path to your images" in said
    assert "git add --all" in said


def test_it_is_a_git_and_a_dvc_repository_without_telemetry(made: tuple[Path, str]) -> None:
    folder, _ = made
    assert run(folder, "git", "rev-parse", "--show-toplevel").strip() == str(folder.resolve())
    assert run(folder, "dvc", "root").strip() == "."
    settings = run(folder, "dvc", "config", "--list", "--project").split()
    assert set(settings) == {"core.analytics=false", "core.check_update=false"}


def test_what_a_run_makes_is_ignored_by_git_but_for_the_scores(made: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made[0], folder)
    for name in ("artifacts/store/images.npy", ".conr/checkpoints/x/state.pt", "results/report.html", "data/x.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in ("results/metrics.json", "images/cat.jpg", "params.yaml.bak2"):
        (folder / name).touch()
    run(folder, "git", "add", "--all")
    files = set(run(folder, "git", "diff", "--cached", "--name-only").split())
    assert files == {
        ".dvc/.gitignore",
        ".dvc/config",
        ".dvcignore",
        ".gitignore",
        "backbones/.gitkeep",
        "cluster_names.csv",
        "dvc.yaml",
        "images/.gitkeep",
        "params.yaml",
        "results/metrics.json",
    }


def test_without_git_it_is_a_dvc_repository_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    said = make(folder, "digits", git=False)
    assert not (folder / ".git").exists()
    assert "git add" not in said
    assert said.endswith("Next: dvc repro")
    assert "Running stage 'prepare'" in run(folder, "dvc", "repro", "--dry", "prepare")


def test_an_empty_folder_is_accepted(tmp_path: Path) -> None:
    make(tmp_path, "digits", git=False)
    assert load_preset("digits") == read(tmp_path / "params.yaml")


def hold_a_file(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").touch()


@pytest.mark.parametrize("occupy", [hold_a_file, Path.touch], ids=["a folder with a file", "a file"])
def test_what_is_there_is_not_touched(tmp_path: Path, occupy: Callable[[Path], None]) -> None:
    folder = tmp_path / "photos"
    occupy(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"^{folder} is not an empty folder; name a new one$"):
        make(folder, "digits")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_preset_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no preset digitz; did you mean digits\?"):
        make(tmp_path / "photos", "digitz")
    assert list(tmp_path.iterdir()) == []


def test_without_git_installed_it_says_so_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"git is not installed; .*--no-git"):
        make(tmp_path / "photos", "digits")
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_fails_is_named_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "none")
    with pytest.raises(UserError, match=f"^git init --quiet failed in {tmp_path}/photos: .*GIT_CONFIG_COUNT"):
        make(tmp_path / "photos", "digits")
    (tmp_path / "config").write_text("[core")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path))
    with pytest.raises(UserError, match=f"dvc init --no-scm failed in {tmp_path}/others: ERROR: configuration error"):
        make(tmp_path / "others", "digits", git=False)


def test_the_pipeline_is_the_repository_s_without_its_code() -> None:
    ours, theirs = load(ROOT / "dvc.yaml"), load(TEMPLATE / "pipeline.yaml")
    for stage in ours["stages"].values():
        stage["deps"] = [dep for dep in stage["deps"] if not dep.startswith(("conr/", "stages/"))]
    assert theirs == ours
    assert list(theirs["stages"]) == list(STAGES)


def test_git_ignores_what_it_ignores_in_the_repository() -> None:
    theirs = (TEMPLATE / "gitignore").read_text().splitlines()
    assert set(theirs) <= set((ROOT / ".gitignore").read_text().splitlines())
    assert "/artifacts/" in theirs


def test_dvc_takes_nothing_in_the_package_for_a_pipeline() -> None:
    """A project can have its environment, with conr in it, in its own folder."""
    assert not list((ROOT / "conr").rglob("dvc.yaml"))
    assert not list((ROOT / "conr").rglob("*.dvc"))
    assert FOLDER.is_relative_to(ROOT / "conr")
