"""The public names: each has an example that runs, and importing conr costs next to nothing."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colored import colored_images, quick

import conr

ROOT = Path(conr.__file__).parents[1]


def examples() -> dict[str, doctest.DocTest]:
    """All of conr's docstrings with an example, by the name of what they document."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [conr, *(importlib.import_module(name) for _, name, _ in pkgutil.walk_packages(conr.__path__, "conr."))]
    found = [test for module in modules for test in finder.find(module, module=module) if test.examples]
    return {test.name: test for test in found}


EXAMPLES = examples()


def problems_of(name: str, names: dict[str, Any]) -> str:
    """What an example shows that it should not; names get those that it assigns."""
    test, problems = EXAMPLES[name], list[str]()
    test.globs = names
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=problems.append, clear_globs=False)
    return "".join(problems) if runner.summarize(verbose=False).failed else ""


@pytest.fixture(scope="module")
def of_package() -> tuple[dict[str, Any], str]:
    """What the examples may use beside the builtins, a result of conr.cluster too; the package's example makes it."""
    images, colors = colored_images()
    names = {"conr": conr, "numpy": np, "torch": torch, "Path": Path}
    names |= {"images": images, "colors": colors, "quick": quick()}
    problems = problems_of("conr", names)
    return names, problems


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_docstring_runs(name: str, of_package: tuple[dict[str, Any], str]) -> None:
    names, problems = of_package
    assert (problems if name == "conr" else problems_of(name, dict(names))) == ""


@pytest.mark.parametrize("name", conr.__all__)
def test_every_public_name_has_a_docstring_with_an_example(name: str) -> None:
    public = getattr(conr, name)
    assert inspect.getdoc(public)
    assert f"{public.__module__}.{public.__qualname__}" in EXAMPLES


def test_the_package_has_an_example_itself() -> None:
    assert "conr" in EXAMPLES


def test_public_names_are_sorted_listed_and_are_what_they_are_called() -> None:
    assert conr.__all__ == sorted(conr.__all__)
    assert set(conr.__all__) <= set(dir(conr))
    assert all(getattr(conr, name).__name__ == name for name in conr.__all__)


def test_a_type_checker_sees_what_is_loaded() -> None:
    tree = ast.parse(Path(conr.__file__).read_text(encoding="utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {alias.name: node.module for node in checked.body for alias in node.names}
    assert sorted(imported) == conr.__all__
    for name, module in imported.items():
        assert getattr(importlib.import_module(module), name) is getattr(conr, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'clusters'"):
        _ = conr.clusters


def test_the_version_has_one_place() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in settings["project"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "conr.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", conr.__version__)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0] == conr.__version__


def loaded(code: str) -> set[str]:
    """Which packages a fresh interpreter has loaded after some code."""
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_conr_loads_neither_torch_nor_numpy() -> None:
    assert not loaded("import conr") & {"torch", "numpy", "scipy", "sklearn", "pydantic", "faiss", "onnxruntime"}


def test_the_training_loop_loads_no_faiss() -> None:
    assert "faiss" not in loaded("import conr.training.loop")


def test_looking_up_parameters_loads_no_torch() -> None:
    assert not loaded("import conr; conr.load_preset('digits'); conr.Workspace; conr.ConAff") & {"torch", "sklearn"}
