"""The package as others install it: an sdist, a wheel with one package, and `conr new` and `dvc repro` anywhere."""

import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
from project import FINISHED, ROOT, SEEDS, copy_tree, run, write_params

import conr
from conr.files import sha256_of
from conr.pipeline.workspace import RECORD, Workspace
from conr.stages.cli import STAGES


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an sdist of this working tree's files, and of the wheel that is built from the sdist."""
    folder = tmp_path_factory.mktemp("distributions")
    copy_tree(folder / "source")
    said = run(folder, sys.executable, "-m", "build", "--no-isolation", "--outdir", "built", "source")
    assert "Deprecat" not in said, "setuptools warns of what it will not do any more"
    return folder / "built"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    (file,) = built.glob("conr-*.whl")
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


def test_the_sdist_holds_what_builds_documents_and_tests_conr(built: Path) -> None:
    name = f"conr-{conr.__version__}"
    with tarfile.open(built / f"{name}.tar.gz") as archive:
        names = {member.name.removeprefix(f"{name}/") for member in archive.getmembers() if member.isfile()}
    made = {path for path in names if path.startswith("conr.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    left_out = files_of(".ci") | files_of("docker") | files_of("images") | files_of("backbones")
    expected = {path for path in files_of(".") - left_out if not path.startswith(".")}
    assert names - made == expected


def test_the_index_of_packages_would_take_both(built: Path) -> None:
    files = sorted(str(file) for file in built.iterdir())
    assert [Path(file).name for file in files] == [
        f"conr-{conr.__version__}-py3-none-any.whl",
        f"conr-{conr.__version__}.tar.gz",
    ]
    assert run(built, sys.executable, "-m", "twine", "check", "--strict", *files).count("PASSED") == len(files)


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


def test_the_installed_command_knows_its_version_and_where_it_is(installed: Path, tmp_path: Path) -> None:
    assert run(tmp_path, str(installed / "conr"), "--version") == f"conr {conr.__version__}\n"
    facts = json.loads(run(tmp_path, str(installed / "conr"), "info", "--json"))
    assert facts["versions"]["conr"] == conr.__version__
    assert facts["versions"]["commit"] == "none (no clone)"
    assert Path(facts["paths"]["conr"]).is_relative_to(installed.parent)


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
