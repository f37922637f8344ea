"""Presets: complete params files to start from, and what one of them changes when it becomes params.yaml."""

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conr.errors import UserError
from stages import params_file
from stages.params_file import PARAMS, Key

FOLDER = Path(__file__).resolve().parents[1] / "presets"


def listing() -> str:
    """Every preset with the first line of its comments."""
    presets = _presets()
    width = max(map(len, presets))
    lines = [
        f"{name:<{width}}  {path.read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}"
        for name, path in presets.items()
    ]
    return "\n".join([*lines, "", f"conr preset NAME writes one of them to {PARAMS}."])


def write(name: str) -> str:
    """Make a preset the params.yaml of the current folder; returns what that changed and what to do next.

    A file that was there and is no preset is kept beside it.

    Raises:
        UserError: there is no such preset.
    """
    presets = _presets()
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1, cutoff=0.5)
        raise UserError(
            f"there is no preset {name}; "
            + (f"did you mean {near[0]}? " if near else "")
            + f"There are {', '.join(presets)}; conr preset says what each is for"
        )
    content = params_file.read(presets[name])
    changes = _changes(content)
    kept = _keep_former(list(presets.values()))
    PARAMS.write_bytes(presets[name].read_bytes())
    lines = [*changes, *kept, f"{PARAMS} is now the preset {name}. {_next_step(content)}"]
    return "\n".join(lines)


def _presets() -> dict[str, Path]:
    """Name → file."""
    found = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    if not found:
        raise UserError(f"there are no presets in {FOLDER}; install conr from its clone: pip install -e .")
    return found


def _changes(new: Mapping[str, Any]) -> list[str]:
    """A line for each key whose value differs from that in the current params.yaml."""
    if not PARAMS.exists():
        return [f"There was no {PARAMS}; it was written anew."]
    try:
        old = params_file.read()
    except UserError as error:
        return [f"The former {PARAMS} could not be compared ({error}); it was written anew."]
    pairs = [(key, params_file.lookup(old, key), value) for key, value in _flat(new)]
    lines = [f"{'.'.join(key)}: {_shown(before)} → {_shown(after)}" for key, before, after in pairs if before != after]
    return lines or ["No value changed."]


def _keep_former(presets: list[Path]) -> list[str]:
    """Copy the current params.yaml to a name that is free, unless it is a preset; returns the line that says so."""
    if not PARAMS.exists():
        return []
    former = PARAMS.read_bytes()
    if any(former == preset.read_bytes() for preset in presets):
        return []
    copy, number = PARAMS.with_name(f"{PARAMS.name}.bak"), 1
    while copy.exists() and copy.read_bytes() != former:
        number += 1
        copy = PARAMS.with_name(f"{PARAMS.name}.bak{number}")
    copy.write_bytes(former)
    return [f"The former {PARAMS} was no preset; it is kept as {copy}."]


def _next_step(content: Mapping[str, Any]) -> str:
    settings = content["prepare"]
    if settings["source"] == "digits":
        return "Next: dvc repro"
    if settings["source"] == "folder":
        return "Next: set prepare.path to your images and clusters to the number of groups, then dvc repro"
    if settings["download"]:
        return (
            f"Next: dvc repro, which downloads the images into {settings['root']} (prepare.root) if they are not there"
        )
    return "Next: set prepare.root to the folder that holds the data set, then dvc repro"


def _flat(content: Mapping[str, Any], prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Paths of keys and their values, in the order of the file."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _shown(value: Any) -> str:
    """A value as params.yaml spells it."""
    return value if isinstance(value, str) else json.dumps(value)
