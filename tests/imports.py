"""Which of the project's files a module imports, directly or through others."""

import ast
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = "conr.stages"  # the package that the folder stages is installed as


def imported_files(module: str, without: Collection[str] = ()) -> set[str]:
    """Paths, relative to the root, of a module and of every project file that importing it can load.

    Args:
        module: its name, such as "conr.pipeline.prepare".
        without: files and folders that are left out, with all that only they import.
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = file_of(name)
        if path is None or path in found or lies_in(path, without):
            continue
        found.add(path)
        waiting += _imports_of(name, ROOT / path)
        waiting += [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)]  # its packages
    return found


def lies_in(file: str, paths: Collection[str]) -> bool:
    """Whether a file is one of these paths, or in a folder that is."""
    return any(Path(file).is_relative_to(path) for path in paths)


def file_of(module: str) -> str | None:
    """The file of a module of the project, relative to the root; None for any other."""
    parts = module.split(".")
    if module == STAGES or module.startswith(f"{STAGES}."):
        parts = parts[1:]
    base = ROOT.joinpath(*parts)
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if parts[0] in ("conr", "stages") and path.is_file():
            return path.relative_to(ROOT).as_posix()
    return None


@cache
def holds_code(file: str) -> bool:
    """Whether a file holds more than a docstring."""
    body = ast.parse((ROOT / file).read_text()).body
    return bool(body[1:]) if body and isinstance(body[0], ast.Expr) else bool(body)


@cache
def _imports_of(module: str, path: Path) -> list[str]:
    names = []
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in _executed(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names += [origin] + [f"{origin}.{alias.name}" for alias in node.names]
    if "conr.frameworks.framework_class" in names:  # imports whichever framework it is asked for
        names += [f"conr.frameworks.{file.stem}" for file in (ROOT / "conr/frameworks").glob("[!_]*.py")]
    return names


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker sees."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for node in child.orelse:
                yield from _executed(node)
        else:
            yield from _executed(child)
