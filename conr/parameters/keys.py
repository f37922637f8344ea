"""Keys of params.yaml: all that are declared, those that were renamed, and the messages about wrong ones."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from conr.parameters.groups import Group

Key = tuple[str, ...]

RENAMED = {
    "host": "framework",
    "host.framework": "framework.name",
    "framework.framework": "framework.name",
    "optimiser": "optimizer",
    "neighbourhood": "neighborhood",
    "neighborhood.neighbours": "neighborhood.neighbors",
    "neighborhood.symmetrise": "neighborhood.symmetrize",
    "neighborhood.normalise": "neighborhood.normalize",
    "network.predictor_deviation": "network.predictor_init_std",
    "views.grey": "views.grayscale",
    "pretrain.predictor_rate": "pretrain.predictor_lr_scale",
    "pretrain.noise": "pretrain.noise_std",
    "finetune.rate": "finetune.lr_scale",
    "finetune.predictor_rate": "finetune.predictor_lr_scale",
    "finetune.boost_neighbours": "finetune.boost_neighbors",
    "evaluate.restarts": "evaluate.n_init",
    "evaluate.iterations": "evaluate.max_iter",
}


def leaves(model: type[Group], prefix: Key = ()) -> Iterator[tuple[Key, FieldInfo]]:
    """Every single parameter that a declaration holds, as its path of keys and its field."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            yield from leaves(field.annotation, (*prefix, name))
        else:
            yield (*prefix, name), field


def lookup(content: Mapping[str, Any], key: Key) -> Any:
    """The value at a path of keys, or None."""
    value: Any = content
    for part in key:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def flat(parameters: Group) -> dict[str, Any]:
    """Every value by its dotted key."""
    content = parameters.model_dump()
    return {".".join(key): lookup(content, key) for key, _ in leaves(type(parameters))}


def unknown(key: str, model: type[Group]) -> str:
    """The message about a key that is not declared: its new name, or the most similar one."""
    group, dot, leaf = key.partition(".")
    new_group = RENAMED.get(group, group)
    renamed = RENAMED.get(key) or RENAMED.get(f"{new_group}.{leaf}")
    if renamed is None and new_group != group:
        renamed = f"{new_group}{dot}{leaf}"
    if renamed is not None:
        return f"the key {key} is called {renamed} now; rename it"
    known = [".".join(path) for path, _ in leaves(model)] + list(model.model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")


def explained(error: ValidationError, model: type[Group]) -> str:
    """What is wrong, and what would be right, on one line."""
    return "; ".join(_explained(problem, model) for problem in error.errors())


def _explained(problem: Any, model: type[Group]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        inside = problem["input"] if isinstance(problem["input"], dict) else {}
        renamed = [f"{key}.{leaf}" for leaf in inside if f"{RENAMED.get(key, key)}.{leaf}" in RENAMED]
        return "; ".join(unknown(name, model) for name in (key, *renamed))
    if problem["type"] == "contradiction":
        return str(problem["msg"])
    return f"{key} = {problem['input']!r} should be {problem['msg'].removeprefix('Input should be ')}"
