"""Which of the project's files a module imports, directly or through others."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def imported_files(module: str) -> set[str]:
    """Paths, relative to the root, of a module and of every project file that importing it can load."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        path = _file_of(waiting.pop())
        if path is None or path.relative_to(ROOT).as_posix() in found:
            continue
        found.add(path.relative_to(ROOT).as_posix())
        waiting += _imports_of(path)
    return found


def _file_of(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports_of(path: Path) -> list[str]:
    names = []
    for node in _executed(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    if "conr.hosts.host_class" in names:  # imports whichever host it is asked for
        names += [f"conr.hosts.{file.stem}" for file in (ROOT / "conr/hosts").glob("*.py")]
    return names


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker sees."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield from _executed(child)
