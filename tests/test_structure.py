"""Imports point down, no modules import each other in a circle, and functions and files are short."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import conr

ROOT = Path(conr.__file__).parents[1]

# From the lowest. A package (or module) imports lower floors and itself, but no other of its floor.
FLOORS = [
    {"errors", "text"},
    {"files", "observer", "processes", "parameters", "vectors"},
    {"neighbors"},
    {"data", "models", "losses", "clustering"},
    {"frameworks", "evaluation", "embedding"},
    {"training"},
    {"refinement", "report"},
    {"pipeline"},
    {"api", "stages"},
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
# Exceptions: losses take the networks' outputs; parameters make settings and look up names.
ALLOWED = {
    ("losses", "conr.models.siamese"),
    ("parameters", "conr.neighbors.settings"),
    ("parameters", "conr.frameworks"),
}
LOOKS_UP_A_NAME = ("conr.parameters.stages", "conr.frameworks")  # in a function, and nothing comes back
FRONT_ENDS = {"dvc", "typer", "rich"}  # of the command line and the pipeline
LINES_OF_A_FUNCTION, LINES_OF_A_FILE = 80, 350


def module_name(file: Path) -> str:
    """conr.training.loop for conr/training/loop.py; stages is installed as conr.stages."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "conr" else ("conr", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for folder in ("conr", "stages") for file in sorted((ROOT / folder).rglob("*.py"))}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}


def package_of(module: str) -> str:
    """The second part of a module's name; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, inside functions too, but those that only a type checker sees."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield from executed(child)


def imports(module: str) -> set[str]:
    """What a module imports, anywhere in it: conr's modules by their full names, others by what is written."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in executed(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{origin}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else origin for name in names}
    return found


IMPORTS = {module: imports(module) for module in FILES}


def test_imports_are_read_in_all_their_forms() -> None:
    assert "conr.training.views" in IMPORTS["conr.training.step"]  # from a module
    assert "conr.pipeline.params_file" in IMPORTS["conr.pipeline.presets"]  # a module from its package
    assert "conr.stages.flags" in IMPORTS["conr.stages.cli"]  # relative
    assert "conr.frameworks" in IMPORTS["conr.parameters.stages"]  # in a function
    assert "conr.models.siamese" not in IMPORTS["conr.frameworks"]  # for a type checker only
    assert {"torch", "torch.nn.functional"} <= IMPORTS["conr.models.siamese"]  # of others


def test_every_package_has_a_floor() -> None:
    assert {package_of(module) for module in FILES} - {""} == set(FLOOR_OF)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    if module == "conr":
        assert not {name for name in IMPORTS[module] if name.startswith("conr")}  # public names are loaded when used
        return
    own = package_of(module)
    wrong = {
        imported
        for imported in IMPORTS[module] & set(FILES)
        if (other := package_of(imported)) != own
        and other != ""
        and FLOOR_OF[other] >= FLOOR_OF[own]
        and (own, imported) not in ALLOWED
    }
    assert wrong == set()


def circle() -> list[str]:
    """Modules of which each imports the next, and the last the first; empty if there are none."""
    done: set[str] = set()

    def search(path: list[str]) -> list[str]:
        for other in sorted(IMPORTS[path[-1]] & set(FILES)):
            if (path[-1], other) == LOOKS_UP_A_NAME or other in done:
                continue
            if other in path:
                return path[path.index(other) :]
            if found := search([*path, other]):
                return found
        done.add(path[-1])
        return []

    return next((found for module in FILES if module not in done and (found := search([module]))), [])


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle() == []


def test_the_search_finds_a_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMPORTS, "conr.errors", {"conr.training.loop"})
    found = circle()
    assert "conr.errors" in found
    assert "conr.training.loop" in found


BELOW_PIPELINE = [module for module in FILES if FLOOR_OF.get(package_of(module), -1) < FLOOR_OF["pipeline"]]


@pytest.mark.parametrize("module", BELOW_PIPELINE)
def test_nothing_below_the_pipeline_knows_dvc_or_the_console(module: str) -> None:
    assert {name.partition(".")[0] for name in IMPORTS[module]} & FRONT_ENDS == set()
    tree = TREES[module]
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False)
    }
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [text.value for text in texts if "params.yaml" in text.value and id(text) not in docstrings] == []


SOURCES = [file for folder in ("conr", "stages", "bench") for file in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_functions_and_files_are_short(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LINES_OF_A_FILE
    lengths = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > LINES_OF_A_FUNCTION} == {}


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"]]
    for extra in ("heic", "openvino", "pretrained", "ray", "tiff"):
        declared += project["optional-dependencies"][extra]
    names = {re.split(r"[<>=!~\[ ]", text)[0].replace("_", "-").lower() for text in declared}
    distributions = packages_distributions()
    undeclared = set()  # pydantic_core is the part of pydantic that its documentation imports errors from
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                imported = [node.module or ""]
            for top in {name.split(".")[0] for name in imported} - {"conr", "pydantic_core", *sys.stdlib_module_names}:
                if not names & {name.replace("_", "-").lower() for name in distributions.get(top, [top])}:
                    undeclared.add((module, top))
    assert undeclared == set()
