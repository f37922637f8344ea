"""conr assign with nothing installed but the dependency group runtime, which the image runtime is made of."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from clustered_run import finish, packed_photos, write_photos
from embedded_run import write_encoder
from project import ROOT, table

from conr.files import sha256_of
from conr.pipeline.records import write_record
from conr.pipeline.workspace import Workspace

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GROUP: list[str] = PYPROJECT["dependency-groups"]["runtime"]
PHOTOS = ["a.png", "b.png", "c.png", "deep/d.png"]
CLUSTERS = dict(zip(PHOTOS, (1, 0, 1, 0), strict=True))
LAUNCH = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in missing else self.finder.find_spec(name, path, target)

missing = set(sys.argv.pop(1).split(","))
sys.meta_path = [Without(finder) for finder in sys.meta_path]
from conr.stages.cli import main
try:
    main()
finally:
    print("imported", *{name.partition(".")[0] for name in sys.modules})
"""


def plain(name: str) -> str:
    """The name of a distribution as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirement: str) -> str:
    """The distribution that a requirement names."""
    return plain(re.split(r"[<>=!~;\[ (]", requirement, maxsplit=1)[0])


def with_dependencies(names: set[str]) -> set[str]:
    """Distributions and all that they require here, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            required = requires(name) or []
        except PackageNotFoundError:  # of another platform
            continue
        waiting += [named(text) for text in required if "extra ==" not in text]
    return found


HERE = {module: set(map(plain, names)) for module, names in packages_distributions().items()}
INSTALLED = with_dependencies(set(map(named, GROUP)))
ABSENT = {module for module, names in HERE.items() if not names & INSTALLED} - {"conr"}


def conr(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command where only the group and its dependencies can be imported."""
    command = [sys.executable, "-c", LAUNCH, ",".join(ABSENT - sys.stdlib_module_names), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished run of graph clusters with a name, beside its photos."""
    folder = tmp_path_factory.mktemp("runtime")
    write_photos(folder / "photos", PHOTOS)
    workspace = packed_photos(folder, folder / "photos")
    write_encoder(folder / "encoder.onnx", 16)
    finish(workspace, folder / "encoder.onnx", CLUSTERS)
    workspace.names.write_text("clustering,cluster,name\n", encoding="utf-8")
    return workspace


def test_the_group_is_a_part_of_the_dependencies() -> None:
    assert set(GROUP) <= set(PYPROJECT["project"]["dependencies"])
    assert not INSTALLED & {"torch", "dvc", "scikit-learn", "scipy", "matplotlib", "onnx", "jinja2"}
    assert {"torch", "dvc", "sklearn", "scipy", "matplotlib", "onnx", "jinja2"} <= ABSENT


@pytest.mark.parametrize("method", ["graph", "kmeans"])
def test_new_images_are_assigned_with_the_group_alone_and_all_of_it_is_needed(run: Workspace, method: str) -> None:
    write_record(run.results, [run.centroids], [0], {"encoder": sha256_of(run.encoder)}, method=method)
    done = conr(run.root, "assign", "photos", "--output", f"{method}.csv", "--sort-into", method)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 images in 2 clusters" in done.stdout
    found = {row["file"]: int(row["cluster"]) for row in table(run.root / f"{method}.csv")}
    if method == "graph":
        assert found == CLUSTERS
    imported = done.stdout.splitlines()[-1].split()[1:]
    assert set(map(named, GROUP)) <= {name for module in imported for name in HERE.get(module, set())}


def test_a_command_that_needs_more_says_what_is_missing(run: Workspace) -> None:
    done = conr(run.root, "cluster", "photos")
    assert done.returncode == 2
    assert re.search(r"Error: this command needs \w+, which is not installed here", done.stderr)
    assert "Traceback" not in done.stderr
