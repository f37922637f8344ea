"""params.yaml: read once per command, by the library that DVC reads it with, and checked key by key."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from conr.errors import UserError, one_line
from conr.parameters import Parameters
from conr.parameters.keys import leaves, lookup, unknown

NAME = "params.yaml"
MOST_VALUES = 10_000


def read(path: Path = Path(NAME)) -> Parameters:
    """The parameters of a file.

    Raises:
        UserError: the file is missing, is no YAML in UTF-8, or a key is unknown, missing or has an impossible value, or
            two contradict each other.
    """
    if not path.exists():
        raise UserError(
            f"there is no {path.name} in {path.absolute().parent}; run conr in the project's folder, start from a "
            "preset (conr preset digits), or make a project: conr new FOLDER"
        )
    data = path.read_bytes()
    try:
        content = YAML(typ="safe").load(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not in UTF-8: line {line}, byte {error.start} of the file is {data[error.start]:#04x}; save it "
            "in UTF-8"
        ) from error
    except YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or one_line(error)
        raise UserError(f"{path} is not valid YAML{f' in line {mark.line + 1}' if mark else ''}: {problem}") from error
    except Exception as error:  # of many classes: a number of 5,000 digits, brackets in brackets, an empty !!int
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    if _size(content, {}) > MOST_VALUES:
        raise UserError(
            f"{path} holds more than {MOST_VALUES:,} values (an anchor that is used again counts each time)"
        )
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values")
    parameters = Parameters.checked(content, str(path))
    for key, field in leaves(Parameters):
        if lookup(content, key) is None:
            raise UserError(f"{path} lacks the key {'.'.join(key)}; add it (default: {field.default})")
    return parameters


def _size(content: Any, known: dict[int, int]) -> int:
    """How many values it is, each use of an anchor counted."""
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in known:
        known[id(content)] = 1  # of one inside itself, which would never end
        parts = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(content)]


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Values by dotted key, from texts such as "boundary.filter=none" (as `dvc exp run -S` takes them).

    Raises:
        UserError: a text without a value, or a key that does not exist.
    """
    known = [".".join(path) for path, _ in leaves(Parameters)]
    found = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign:
            raise UserError(f"--set {text} should be KEY=VALUE, such as pretrain.epochs=800")
        if key not in known:
            raise UserError(f"--set {text}: {unknown(key, Parameters)}")
        try:
            found[key] = YAML(typ="safe").load(value)
        except Exception as error:  # as above
            raise UserError(f"--set {text}: {value} is not valid YAML") from error
    return found
