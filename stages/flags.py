"""The command of a stage, with flags made from the declarations in conr.parameters."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.main import get_command

from conr.embedding.engines.settings import Engine
from conr.errors import UserError
from conr.parameters import STAGES, Parameters
from conr.parameters.keys import Key, leaves, lookup
from conr.pipeline import params_file

from .engines import FLAGS
from .integers import Integers, Pairs, Texts, integers, pairs, texts

Run = Callable[..., None]
EMBEDS = ("pretrain", "extract")  # stages that an engine can do the work of


def stage_context(
    name: str, summary: str | None, run: Run, asks_for_help: bool, *arguments: Any, **settings: Any
) -> Any:
    """Parse the arguments of a stage: params.yaml gives the value of each flag that is not given.

    Help works without the file, and with a broken one.

    Raises:
        UserError: the file cannot be used.
    """
    try:
        parameters = params_file.read()
    except UserError:
        if not asks_for_help:
            raise
        parameters = Parameters()
    content = parameters.model_dump()
    fields = dict(leaves(STAGES[name]))

    engine_flags = FLAGS if name in EMBEDS else {}

    def command(**flags: Any) -> None:
        engine = [Engine(*(flags[flag] for flag in engine_flags))] if engine_flags else []
        run(name, parameters.changed({".".join(key): flags[_argument(key)] for key in fields}, "flags"), *engine)

    signature = [
        inspect.Parameter(
            _argument(key),
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(lookup(content, key), field),
            annotation=_option(key, field),
        )
        for key, field in fields.items()
    ] + [
        inspect.Parameter(flag, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for flag, (annotation, default) in engine_flags.items()
    ]
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command(name, help=summary)(command)
    return get_command(app).make_context(*arguments, **settings)


def _default(value: Any, field: FieldInfo) -> Any:
    """What Typer takes as the default of a flag."""
    return str(value) if field.annotation == int | str else value


def _argument(key: Key) -> str:
    """The last part of the key; of a name that of its group, so that framework.name is --framework."""
    return key[-2] if key[-1] == "name" else key[-1]


def _option(key: Key, field: FieldInfo) -> Any:
    flag = "--" + _argument(key).replace("_", "-")
    panel = f"{key[0]}: in params.yaml" if len(key) > 1 else "top level of params.yaml"
    if field.annotation == list[str]:
        option = typer.Option(flag, parser=texts, metavar="a,b", help=field.description, rich_help_panel=panel)
        return Annotated[Texts, option]
    if field.annotation == int | str:
        metavar = "|".join(field.examples or [])
        return Annotated[str, typer.Option(flag, metavar=metavar, help=field.description, rich_help_panel=panel)]
    if field.annotation == list[list[float]]:
        option = typer.Option(flag, parser=pairs, metavar="a:b,c:d", help=field.description, rich_help_panel=panel)
        return Annotated[Pairs, option]
    if get_origin(field.annotation) is list:
        return Annotated[Integers, typer.Option(flag, parser=integers, metavar="0,1,2", help=field.description)]
    names = f"{flag}/--no-{flag[2:]}" if field.annotation is bool else flag
    limits = ", ".join(text for text in map(_limit, field.metadata) if text)
    description = f"{field.description}{f' [{limits}]' if limits else ''}"
    return Annotated[field.annotation, typer.Option(names, help=description, rich_help_panel=panel)]


def _limit(constraint: object) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return " ".join(f"{sign} {getattr(constraint, name)}" for name, sign in signs.items() if hasattr(constraint, name))
