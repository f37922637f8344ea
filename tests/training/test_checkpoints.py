"""What a checkpoint gives back, what a failed write leaves behind, and what names a run."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conr.files import atomic_file
from conr.training import checkpoints
from conr.training.checkpoints import Checkpoint, fingerprint, syntax


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_checkpoint_returns_what_was_saved_last(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run" / "pretrain")
    assert checkpoint.load() is None
    for epoch in range(2):
        state = {"model": {"w": torch.arange(3.0) + epoch}, "history": [{"epoch": epoch, "loss": 0.25, "acc": None}]}
        checkpoint.save(state)
        assert same(Checkpoint(tmp_path / "run" / "pretrain").load(), state)


def test_saving_is_due_as_often_as_it_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0

    def slow_disk(descriptor: int) -> None:
        nonlocal now
        now += 0.5

    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(os, "fsync", slow_disk)
    checkpoint, saved = Checkpoint(tmp_path), []
    for epoch in range(20):
        now += 3.0  # seconds of an epoch; a saving takes half a second, a fiftieth of 25
        if checkpoint.due:
            checkpoint.save({})
            saved.append(epoch)
    assert saved == [0, 9, 18]


def test_the_epochs_of_a_state_are_those_of_its_history(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.epochs == 0
    for epochs in (1, 3):
        checkpoint.save({"model": {"w": torch.ones(3)}, "history": [{"loss": 0.5}] * epochs})
        assert checkpoint.epochs == epochs


def test_removed_checkpoint_is_gone_and_removing_again_is_harmless(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run")
    checkpoint.save({"epoch": 1})
    checkpoint.remove()
    assert checkpoint.load() is None
    assert not (tmp_path / "run").exists()
    checkpoint.remove()


def test_failure_while_saving_leaves_the_old_state_whole(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run")
    checkpoint.save({"epoch": 1, "w": torch.arange(3)})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save({"epoch": 2, "w": torch.zeros(100_000), "cannot be pickled": lambda: None})
    assert same(checkpoint.load(), {"epoch": 1, "w": torch.arange(3)})
    assert [path.name for path in checkpoint.folder.iterdir()] == ["state.pt"]


def test_full_disk_while_saving_leaves_the_old_state_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path / "run")
    checkpoint.save({"epoch": 1})

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({"epoch": 2})
    assert checkpoint.load() == {"epoch": 1}
    assert [path.name for path in checkpoint.folder.iterdir()] == ["state.pt"]


def write_half(path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_interrupted_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


PARTS = ({"seed": 0, "views": {"flip": 0.5}}, "checksum", 10)


def test_fingerprint_is_a_function_of_its_parts() -> None:
    reordered = ({"views": {"flip": 0.5}, "seed": 0}, "checksum", 10)
    assert fingerprint(*PARTS) == fingerprint(*reordered)
    assert len(fingerprint(*PARTS)) == 16


@pytest.mark.parametrize(
    "changed",
    [
        ({"seed": 1, "views": {"flip": 0.5}}, "checksum", 10),
        ({"seed": 0, "views": {"flip": 0.4}}, "checksum", 10),
        ({"seed": 0, "views": {"flip": 0.5}, "more": None}, "checksum", 10),
        ({"seed": 0, "views": {"flip": 0.5}}, "Checksum", 10),
        ({"seed": 0, "views": {"flip": 0.5}}, "checksum", "10"),
        ({"seed": 0, "views": {"flip": 0.5}}, "checksum"),
        ("checksum", {"seed": 0, "views": {"flip": 0.5}}, 10),
    ],
)
def test_fingerprint_changes_with_any_part(changed: tuple[object, ...]) -> None:
    assert fingerprint(*changed) != fingerprint(*PARTS)


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("training/loop.py", True),
        ("refinement/group.py", True),
        ("evaluation/scores.py", True),
        ("frameworks/another.py", True),
        ("data/store.py", True),
        ("data/pack.py", False),
        ("report/page.py", False),
        ("embedding/export.py", False),
        ("pipeline/report.py", False),
        ("files.py", False),
    ],
)
def test_fingerprint_changes_with_the_source_code_that_a_training_depends_on(
    file: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {}
    for change, content in {"before": "scale = 1\n", "comment": "scale = 1  # once\n", "code": "scale = 2\n"}.items():
        (tmp_path / change / "data").mkdir(parents=True)
        (tmp_path / change / "data/store.py").write_text("")
        source = tmp_path / change / file
        source.parent.mkdir(exist_ok=True)
        source.write_text(content)
        monkeypatch.setattr(checkpoints, "CODE", tmp_path / change)
        names[change] = fingerprint(*PARTS)
    assert names["comment"] == names["before"]
    assert (names["code"] != names["before"]) == counts


# The syntax tree

SOURCE = '''"""A module."""

import math
from math import pi  # which is a number

FACTOR = 2.5


class Circle(object):
    """A class."""

    name = "circle"

    def area(self, radius: float = 1.0, *, scale=1):
        """A method."""
        if radius < 0:
            raise ValueError(f"{radius} is negative")
        return scale * pi * radius**2


async def wait(seconds):
    """Only this."""


def quoted():
    text = """no docstring"""
    return text
'''

SAME = {
    "a comment": SOURCE.replace("FACTOR = 2.5", "# Of everything.\nFACTOR = 2.5  # half of five"),
    "another comment": SOURCE.replace("# which is a number", "# which is none"),
    "blank lines": SOURCE.replace("\n\n\n", "\n\n\n\n").replace("        if", "\n        if"),
    "the docstring of the module": SOURCE.replace("A module.", "Something else."),
    "the docstring of a class": SOURCE.replace("A class.", "Something\n    else."),
    "the docstring of a method": SOURCE.replace("A method.", "Something else."),
    "the docstring of a coroutine": SOURCE.replace("Only this.", "And that."),
    "no docstring": SOURCE.replace('"""A module."""\n', "").replace('        """A method."""\n', ""),
    "quotes": SOURCE.replace('"circle"', "'circle'"),
    "layout": SOURCE.replace("scale * pi * radius**2", "(scale * pi\n            * radius ** 2)"),
}
OTHER = {
    "a number": SOURCE.replace("2.5", "2.50001"),
    "an operator": SOURCE.replace("< 0", "<= 0"),
    "a text": SOURCE.replace('"circle"', '"round"'),
    "a text in three quotes": SOURCE.replace("no docstring", "still none"),
    "part of a message": SOURCE.replace("is negative", "is below 0"),
    "a name": SOURCE.replace("FACTOR", "SCALE"),
    "a default": SOURCE.replace("= 1.0", "= 2.0"),
    "an annotation": SOURCE.replace("radius: float", "radius: int"),
    "a keyword": SOURCE.replace("*, scale", "scale"),
    "a base": SOURCE.replace("(object)", ""),
    "a decorator": SOURCE.replace("    def area", "    @staticmethod\n    def area"),
    "an import": SOURCE.replace("import math\n", ""),
    "an alias": SOURCE.replace("import pi ", "import pi as pi "),
    "the order": SOURCE.replace("import math\nfrom math import pi", "from math import pi\nimport math"),
    "the nesting": SOURCE.replace("        return scale", "            return scale"),
    "a coroutine": SOURCE.replace("async def", "def"),
    "one more statement": SOURCE + "quoted()\n",
}


@pytest.mark.parametrize("change", SAME)
def test_comments_docstrings_and_layout_do_not_count(change: str) -> None:
    assert SAME[change] != SOURCE
    assert syntax(SAME[change]) == syntax(SOURCE)


@pytest.mark.parametrize("change", OTHER)
def test_any_other_change_of_code_counts(change: str) -> None:
    assert OTHER[change] != SOURCE
    assert syntax(OTHER[change]) != syntax(SOURCE)


def test_no_two_modules_of_conr_have_the_same_syntax() -> None:
    files = [file for file in checkpoints.CODE.rglob("*.py") if file.name != "__init__.py"]
    assert len({syntax(file.read_text(encoding="utf-8")) for file in files}) == len(files) > 50
