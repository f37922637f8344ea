"""The command of a stage, with flags made from the declarations in conr.parameters."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.main import get_command

from conr.parameters import EvaluateStage, ExtractStage, FinetuneStage, Parameters, PrepareStage, PretrainStage
from stages import params_file
from stages.integers import Integers, integers
from stages.paths import STORE

VIEWS: dict[str, type[Parameters]] = {
    "prepare": PrepareStage,
    "pretrain": PretrainStage,
    "finetune": FinetuneStage,
    "extract": ExtractStage,
    "evaluate": EvaluateStage,
}


def stage_command(name: str, summary: str | None, run_stage: Callable[[str, Parameters], None]) -> Any:
    """The command of a stage, as Click has it: a flag for each parameter that the stage reads, and its run."""
    view = VIEWS[name]
    fields = dict(params_file.leaves(view))

    def command(**flags: Any) -> None:
        content = params_file.read()
        for key in fields:
            group = content
            for part in key[:-1]:
                group = group[part]
            group[key[-1]] = flags[key[-1]]
        params = params_file.validated(content, "flags")
        params_file.check_together(params)
        if name != "prepare":
            params_file.check_against_data(params, STORE / "manifest.json")
        run_stage(name, params_file.view_of(view, params))

    signature = [
        inspect.Parameter(
            key[-1], inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=_option(key, field)
        )
        for key, field in fields.items()
    ]
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    alone = typer.Typer(add_completion=False)
    alone.command(name, help=summary)(command)
    return get_command(alone)


def defaults(name: str) -> dict[str, Any]:
    """The values of a stage's flags in params.yaml.

    Raises:
        UserError: the file cannot be used.
    """
    content = params_file.read()
    return {key[-1]: params_file.lookup(content, key) for key, _ in params_file.leaves(VIEWS[name])}


def _option(key: params_file.Key, field: FieldInfo) -> Any:
    flag = "--" + key[-1].replace("_", "-")
    if get_origin(field.annotation) is list:
        return Annotated[Integers, typer.Option(flag, parser=integers, metavar="0,1,2", help=field.description)]
    names = f"{flag}/--no-{flag[2:]}" if field.annotation is bool else flag
    limits = ", ".join(text for text in map(_limit, field.metadata) if text)
    description = f"{field.description}{f' [{limits}]' if limits else ''}"
    panel = f"{key[0]}: in params.yaml" if len(key) > 1 else "top level of params.yaml"
    return Annotated[field.annotation, typer.Option(names, help=description, rich_help_panel=panel)]


def _limit(constraint: object) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return " ".join(f"{sign} {getattr(constraint, name)}" for name, sign in signs.items() if hasattr(constraint, name))
