"""Presets: complete params files to start from, and how one of them becomes params.yaml."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conr.errors import UserError
from conr.files import atomic_file
from conr.parameters import Parameters
from conr.parameters.keys import leaves, lookup
from conr.pipeline import params_file

PIPELINE = "dvc.yaml"
FOLDER = Path(__file__).parents[1] / "presets"


def load_preset(name: str) -> Parameters:
    """The parameters of a preset.

    Raises:
        UserError: there is none of that name.

    >>> conr.load_preset("digits").clusters
    10
    """
    return params_file.read(preset_file(name))


def preset_file(name: str) -> Path:
    """The file of a preset.

    Raises:
        UserError: there is none of that name.
    """
    presets = _presets()
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1, cutoff=0.5)
        raise UserError(
            f"there is no preset {name}; "
            + (f"did you mean {near[0]}? " if near else "")
            + f"There are {', '.join(presets)}; conr preset says what each is for"
        )
    return presets[name]


def listing() -> str:
    """Every preset with the first line of its comments."""
    presets = _presets()
    width = max(map(len, presets))
    lines = [
        f"{name:<{width}}  {path.read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}"
        for name, path in presets.items()
    ]
    return "\n".join([*lines, "", f"conr preset NAME writes one of them to {params_file.NAME}."])


def write(name: str, target: Path) -> str:
    """Make a preset the params.yaml of a project; returns what that changed and what to do next.

    A file that was there and is no preset is kept beside it.

    Args:
        name: of the preset.
        target: the file.

    Raises:
        UserError: there is no such preset.
    """
    source = preset_file(name)
    parameters = params_file.read(source)
    lines = [f"There was no {target.name}; a new one was written."]
    if target.exists():
        lines = [*_changes(parameters.model_dump(), target), *_keep_former(target)]
    with atomic_file(target) as temporary:
        temporary.write_bytes(source.read_bytes())
    next_steps = next_step(parameters)
    if not target.with_name(PIPELINE).exists():
        next_steps = (
            f"There is no {PIPELINE} here, which dvc repro needs: conr new FOLDER --preset {name} makes a project. "
            f"In it, {next_steps[0].lower()}{next_steps[1:]}"
        )
    return "\n".join([*lines, f"{target.name} is now the preset {name}. {next_steps}"])


def next_step(parameters: Parameters) -> str:
    """What to do with a preset that has just been written."""
    settings = parameters.prepare
    if settings.source == "digits":
        return "Next: dvc repro"
    if settings.source == "folder":
        return "Next: set prepare.path to your images and clusters to the number of groups, then dvc repro"
    if settings.download:
        return f"Next: dvc repro, which downloads the images into {settings.root} (prepare.root) if they are missing"
    return "Next: set prepare.root to the folder that holds the data set, then dvc repro"


def _presets() -> dict[str, Path]:
    """Name → file."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def _changes(new: Mapping[str, Any], target: Path) -> list[str]:
    """A line for each key whose value differs from that in the current file."""
    try:
        old = params_file.read(target).model_dump()
    except UserError as error:
        return [f"The old {target.name} could not be compared ({error}); it was replaced."]
    pairs = [(key, lookup(old, key), lookup(new, key)) for key, _ in leaves(Parameters)]
    changes = [(key, json.dumps(before), json.dumps(after)) for key, before, after in pairs if before != after]
    lines = [f"{'.'.join(key)}: {before} → {after}".replace('"', "") for key, before, after in changes]
    return lines or ["No value changed."]


def _keep_former(target: Path) -> list[str]:
    """Copy the current file to a name that is free, unless it is a preset; returns the line that says so."""
    former = target.read_bytes()
    if any(former == preset.read_bytes() for preset in _presets().values()):
        return []
    copy, number = target.with_name(f"{target.name}.bak"), 1
    while copy.exists() and copy.read_bytes() != former:
        number += 1
        copy = target.with_name(f"{target.name}.bak{number}")
    with atomic_file(copy) as temporary:
        temporary.write_bytes(former)
    return [f"The old {target.name} is kept as {copy.name}."]
