"""params.yaml: read, checked key by key, and checked against itself and the data before anything runs."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from conr.errors import UserError
from conr.parameters import Host, Parameters, ParamsFile

PARAMS = Path("params.yaml")
Key = tuple[str, ...]
View = TypeVar("View", bound=Parameters)


class _Loader(yaml.SafeLoader):
    """PyYAML reads 1e-3 as text (YAML 1.1); DVC and everybody else read a number (YAML 1.2)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def leaves(model: type[Parameters], prefix: Key = ()) -> Iterator[tuple[Key, FieldInfo]]:
    """Every single parameter that a declaration holds, as its path of keys and its field."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Parameters):
            yield from leaves(field.annotation, (*prefix, name))
        else:
            yield (*prefix, name), field


def read(path: Path = PARAMS) -> dict[str, Any]:
    """Read the file and check every key, type and range on its own.

    Raises:
        UserError: the file is missing, is no YAML in UTF-8, or a key is unknown, missing or has an impossible value.
    """
    if not path.exists():
        raise UserError(
            f"there is no {path} in {Path.cwd()}; run conr in the project's folder, or start from a preset: "
            "conr preset digits"
        )
    data = path.read_bytes()
    try:
        content = yaml.load(data.decode("utf-8"), _Loader)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not in UTF-8: line {line}, byte {error.start} of the file is {data[error.start]:#04x}; save it "
            "in UTF-8"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values")
    validated(content, str(path))
    for key, field in leaves(ParamsFile):
        if lookup(content, key) is None:
            raise UserError(f"{path} lacks the key {'.'.join(key)}; add it (default: {field.default})")
    return content


def validated(content: Mapping[str, Any], origin: str = str(PARAMS)) -> ParamsFile:
    """Turn nested keys and values into parameters.

    Raises:
        UserError: naming every key that is wrong, and what would be right.
    """
    try:
        return ParamsFile.model_validate(content)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise UserError(f"{origin}: " + "; ".join(lines)) from error


def lookup(content: Mapping[str, Any], key: Key) -> Any:
    """The value at a path of keys, or None."""
    value: Any = content
    for part in key:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def changed(params: ParamsFile, changes: Mapping[str, Any]) -> ParamsFile:
    """Parameters with some values replaced, by dotted key, such as "boundary.filter".

    Raises:
        UserError: naming every key that is unknown or has an impossible value.
    """
    content = params.model_dump()
    for key, value in changes.items():
        *groups, name = key.split(".")
        group = content
        for part in groups:
            group = group[part]
        group[name] = value
    return validated(content, "changes")


def settings(texts: Sequence[str]) -> dict[str, Any]:
    """Values by dotted key, from texts such as "boundary.filter=none" (as `dvc exp run -S` takes them).

    Raises:
        UserError: a text without a value, or a key that does not exist.
    """
    known = [".".join(path) for path, _ in leaves(ParamsFile)]
    found = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign:
            raise UserError(f"--set {text} should be KEY=VALUE, such as pretrain.epochs=800")
        if key not in known:
            raise UserError(f"--set {text}: {_unknown(key)}")
        try:
            found[key] = yaml.load(value, _Loader)
        except yaml.YAMLError as error:
            raise UserError(f"--set {text}: {value} is not valid YAML") from error
    return found


def view_of(view: type[View], params: ParamsFile) -> View:
    """The parameters that a stage reads."""
    return view.model_validate({field: getattr(params, field) for field in view.model_fields})


def check_together(params: ParamsFile) -> None:
    """Check parameters against each other.

    Raises:
        UserError: naming the two that contradict.
    """
    batch, total = params.finetune.batch_size, params.pretrain.epochs + params.finetune.epochs
    for name, value in (("k", params.k), ("k1", params.k1)):
        if value > batch:
            raise UserError(
                f"{name} = {value} is larger than finetune.batch_size = {batch}; neighbours are searched in the batch"
            )
    if params.k2 > params.k1:
        raise UserError(f"k2 = {params.k2} is larger than k1 = {params.k1}; lower k2 or raise k1")
    if params.optimiser.schedule_epochs < total:
        raise UserError(
            f"optimiser.schedule_epochs = {params.optimiser.schedule_epochs} is shorter than pretrain.epochs + "
            f"finetune.epochs = {total}; the learning rate would be 0 before the end"
        )
    framework, settings = params.host.framework, params.finetune
    if settings.instance == 0 and params.neighbourhood.neighbours != "none" and _needs_instance_loss(framework):
        raise UserError(
            f"host.framework = {framework} needs finetune.instance above 0: group concordance alone could let its "
            "features collapse"
        )
    if params.k1 > params.evaluate.context:
        raise UserError(
            f"k1 = {params.k1} is larger than evaluate.context = {params.evaluate.context}, the images among which the "
            "figures search neighbours"
        )
    if len(set(params.seeds)) < len(params.seeds):
        raise UserError(f"seeds = {params.seeds} names a seed twice")
    for stage, batch_size in (("pretrain", params.pretrain.batch_size), ("finetune", params.finetune.batch_size)):
        if params.network.bn_group and batch_size % params.network.bn_group:
            raise UserError(
                f"network.bn_group = {params.network.bn_group} does not divide {stage}.batch_size = {batch_size}"
            )
    if params.optimiser.warmup_epochs >= params.optimiser.schedule_epochs:
        raise UserError(
            f"optimiser.warmup_epochs = {params.optimiser.warmup_epochs} leaves nothing of optimiser.schedule_epochs = "
            f"{params.optimiser.schedule_epochs}"
        )


def check_against_data(params: ParamsFile, manifest: Path) -> None:
    """Check parameters against the packed images, before hours of training.

    Raises:
        UserError: more clusters or a larger batch than there are images.
    """
    if not manifest.exists():
        return  # the stage itself says that the store is missing
    try:
        content = json.loads(manifest.read_text())
        count, training = int(content["count"]), int(content["train_count"])
    except (ValueError, KeyError, TypeError):
        return  # the stage itself says that the store is damaged
    for name, value, limit, what in (
        ("clusters", params.clusters, count, "images"),
        ("pretrain.batch_size", params.pretrain.batch_size, training, "images to train on"),
        ("finetune.batch_size", params.finetune.batch_size, training, "images to train on"),
    ):
        if value > limit:
            raise UserError(f"{name} = {value} is larger than the number of {what} ({limit}); lower it")
    if params.host.framework == "moco" and params.host.queue >= training:
        raise UserError(
            f"host.queue = {params.host.queue} is not smaller than the number of images to train on ({training}): "
            "every image would be among its own negatives; lower it"
        )


def _needs_instance_loss(framework: str) -> bool:
    if framework == Host().framework:
        return False  # known without loading PyTorch, for a quick conr prepare
    from conr.hosts import host_class

    return host_class(framework).needs_instance_loss


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _unknown(key)
    message = problem["msg"].removeprefix("Input should be ")
    return f"{key} = {problem['input']!r} should be {message}"


def _unknown(key: str) -> str:
    known = [".".join(path) for path, _ in leaves(ParamsFile)] + list(ParamsFile.model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")
