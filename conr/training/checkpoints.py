"""The state that a training resumes from.

A checkpoint is written to a temporary name, synced and renamed, so that a kill at any time leaves the last whole
one; its first line has the hash of the rest, so that a damaged one is never resumed from. Its folder is named by a
fingerprint of everything the run depends on: changed parameters never resume.
"""

import ast
import hashlib
import io
import json
import shutil
import time
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from conr.errors import Note, one_line
from conr.files import atomic_file

LONGEST_HEAD = 1000  # bytes of the first line
SAVING = 0.02  # of the time of a training may go into saving its state
CODE = Path(__file__).parents[1]
# What a training and its scores can depend on, of conr's code. A test compares it with what the stages import.
DEPENDENCIES = (
    "clustering",
    "data/images.py",
    "data/store.py",
    "evaluation",
    "frameworks",
    "losses",
    "models",
    "neighbors",
    "refinement",
    "training",
)


def fingerprint(*parts: object) -> str:
    """A short name for a run: a hash of its JSON-like parts (parameters, checksums) and of the code that it runs.

    The code counts because a run that is resumed with other code would be neither the old run nor the new one. Comments
    and docstrings do not count.
    """
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    digest.update(_hash_of(CODE).encode())
    return digest.hexdigest()[:16]


@cache
def _hash_of(code: Path) -> str:
    """A hash of the syntax trees of all that a training depends on, below a folder."""
    digest = hashlib.sha256()
    for name in DEPENDENCIES:
        path = code / name
        for file in [path] if path.is_file() else sorted(path.glob("*.py")):
            digest.update(syntax(file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def syntax(source: str) -> str:
    """The syntax tree of Python source code without docstrings, as text; comments and layout are not part of it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef() if ast.get_docstring(node):
                del node.body[0]
    return ast.dump(tree)


class Checkpoint:
    """The one resumable state of a run, in a folder of its own, which the first save makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "state.pt"
        self._due = 0.0

    @property
    def due(self) -> bool:
        """Whether so much was done since the last save that another one costs little: `SAVING` of the time.

        With long epochs that is after each; on a fast GPU an epoch may take no longer than saving its result.
        """
        return time.monotonic() >= self._due

    @property
    def epochs(self) -> int:
        """After how many epochs the state was saved; the rest of it is not read."""
        try:
            with self.file.open("rb") as file:
                return int(json.loads(file.readline(LONGEST_HEAD))["epochs"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def load(self) -> dict[str, Any] | None:
        """The last saved state on the CPU, or None if there is none, or none that can be used: that is set aside."""
        if not self.file.exists():
            return None
        try:
            with self.file.open("rb") as file:
                head = json.loads(file.readline(LONGEST_HEAD))
                content = file.read()
            if hashlib.sha256(content).hexdigest() != head["sha256"]:
                raise ValueError("its content is not what was saved")
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # PyTorch's unpickler raises errors of many classes
            aside = self.file.with_suffix(".damaged")
            self.file.replace(aside)
            message = f"{self.file} is damaged ({one_line(error)}); it is now {aside}, and training starts anew"
            warnings.warn(Note(message), stacklevel=2)
            return None
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the saved state. The old one stays whole until the new one is on the disk."""
        started = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Through memory: PyTorch's own writer turns a full disk into an error of no class of its own.
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getbuffer()
        head = {"epochs": len(state.get("history", [])), "sha256": hashlib.sha256(content).hexdigest()}
        with atomic_file(self.file) as temporary, temporary.open("wb") as file:
            file.write(json.dumps(head).encode() + b"\n")
            file.write(content)
        finished = time.monotonic()
        self._due = finished + (finished - started) / SAVING

    def remove(self) -> None:
        """Delete the state of a run that has finished."""
        shutil.rmtree(self.folder, ignore_errors=True)
