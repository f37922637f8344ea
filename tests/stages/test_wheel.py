"""The package as others install it: one top-level package with all files, and `conr new` and `dvc repro` anywhere."""

import json
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
from project import FINISHED, ROOT, SEEDS, copy_tree, run, write_params

from conr.files import sha256_of
from conr.pipeline.workspace import RECORD, Workspace
from conr.stages.cli import STAGES


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this working tree's files."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_tree(folder / "source")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    run(folder, sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", "built", "./source")
    (file,) = (folder / "built").glob("conr-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment that has the wheel, and sees the dependencies of this one.

    What this environment has in development is not seen: .pth files count in an environment's own folder only.
    """
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False)
    commands = folder / ("Scripts" if sys.platform == "win32" else "bin")
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    run(folder, sys.executable, "-m", "pip", "--python", str(commands / "python"), "install", *options, str(wheel))
    packages = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    seen = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (Path(packages) / "dependencies.pth").write_text("\n".join(seen) + "\n")
    return commands


@pytest.fixture(scope="module")
def project(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A new project, made by the installed command in an empty folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    said = run(folder, str(installed / "conr"), "new", "photos", bin_folder=installed)
    assert said.startswith("photos is a project with the preset digits. Go there: cd photos\nNext: dvc repro")
    return Workspace.at(folder / "photos")


def files_of(folder: str) -> set[str]:
    """The files of a folder of the repository that git knows or would."""
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", folder)
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def test_it_holds_one_package_with_every_file_of_it(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        information = {name for name in archive.namelist() if ".dist-info/" in name}
    assert {name.partition("/")[0] for name in names} == {"conr"}
    assert {name.partition("/")[0] for name in information} == {f"{wheel.name.split('-py3')[0]}.dist-info"}
    expected = files_of("conr") | {f"conr/{name}" for name in files_of("stages")}
    assert names == expected
    for name in (
        "conr/stages/cli.py",
        "conr/presets/digits.yaml",
        "conr/template/pipeline.yaml",
        "conr/template/gitignore",
        "conr/report/page.html.jinja",
        "conr/report/page.css",
        "conr/report/page.js",
        "conr/report/published.csv",
    ):
        assert name in names


def test_the_installed_package_is_the_wheel_s(installed: Path, tmp_path: Path) -> None:
    script = "import conr.stages.cli, pathlib; print(pathlib.Path(conr.__file__).parent, conr.stages.cli.__file__)"
    package, command = run(tmp_path, str(installed / "python"), "-c", script).split()
    assert Path(package).is_relative_to(installed.parent)
    assert Path(command).is_relative_to(package)
    missing = subprocess.run(
        [installed / "python", "-c", "import stages"], cwd=tmp_path, capture_output=True, check=False
    )
    assert b"No module named 'stages'" in missing.stderr


def test_presets_are_written_in_an_empty_folder_and_images_packed(installed: Path, tmp_path: Path) -> None:
    conr = str(installed / "conr")
    assert "digits" in run(tmp_path, conr, "preset")
    assert "params.yaml is now the preset digits. There is no dvc.yaml here" in run(tmp_path, conr, "preset", "digits")
    assert "1,797 images of 8×8 pixels" in run(tmp_path, conr, "prepare")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".conr", "artifacts", "params.yaml"]


def test_a_new_project_whose_images_have_no_labels_says_what_cannot_be_known(
    installed: Path, project: Workspace, finished: Workspace
) -> None:
    folder, dvc = project.root, [str(installed / "python"), "-m", "dvc"]
    write_params(folder, {**FINISHED, "prepare.labels": "none"})
    assert "Running stage 'prepare'" in run(folder, *dvc, "repro", "prepare", bin_folder=installed)
    # The rest by the same command, but for the trainings.
    project.borrow(finished, *(f"artifacts/{name}" for name in ("pretrain", "finetune", "embeddings", "encoder.onnx")))
    output = run(folder, str(installed / "conr"), "evaluate")
    assert output.count("There are no labels") == 1
    metrics = json.loads(project.metrics.read_text())
    assert "acc" not in metrics
    assert set(metrics["gain"]) == {"silhouette", "size_entropy"}
    assert "label" not in project.assignments.read_text().splitlines()[0]
    assert json.loads((project.results / RECORD).read_text())["made_from"] == {
        "encoder": sha256_of(finished.encoder),
        "embeddings": sha256_of(finished.embeddings(SEEDS[0])),
    }
    figures = {path.stem for path in project.figures.iterdir()}
    assert figures == {"gallery", "map", "cluster_sizes", "training", "neighbors"}
    assert len((project.plots / "neighbor_purity.csv").read_text().splitlines()) == 1, "a header without rows"
    run(folder, *dvc, "plots", "show", "--out", "plots", bin_folder=installed)
    assert "Cluster sizes" in (folder / "plots/index.html").read_text()

    planned = re.findall(r"Running stage '(\w+)'", run(folder, *dvc, "repro", "--dry", bin_folder=installed))
    assert planned == list(STAGES)[1:], "only the images have been packed by DVC"
