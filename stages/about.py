"""What conr says of itself: conr --version, and conr info for bug reports."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

import conr
from conr.errors import UserError, one_line
from conr.text import printable


def version(asked: bool) -> None:
    """Print the version and leave."""
    if asked:
        typer.echo(f"conr {conr.__version__}")
        raise typer.Exit


def options(
    _: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version")] = False,
) -> None:
    """The options of conr itself."""


def info(
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all that is here and compare it with its hashes")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON")] = False,
) -> None:
    """Print what a bug report needs: versions, machine, threads, paths, and what each stage has left in this folder.

    With --verify it fails where something is missing or damaged; else it never does.
    """
    from conr.pipeline.environment import environment
    from conr.pipeline.workspace import Workspace

    workspace = Workspace.here()
    facts: dict[str, Any] = environment(workspace)
    left, wrong = _left(workspace, verify)
    facts |= {"stages": left, "wrong": wrong}
    text = json.dumps(facts, indent=1, ensure_ascii=False) if as_json else "\n".join(_lines(facts))
    typer.echo(printable(text, keep="\n"))
    if verify and wrong:
        raise UserError("\n".join(wrong))
    if verify and not as_json:
        typer.echo("all of it is what was written")


def _left(workspace: Any, verify: bool) -> tuple[list[dict[str, str]], list[str]]:
    """What the stages have left, and what is wrong; where a library is damaged, only that it is."""
    try:
        from conr.pipeline.info import info as left_in

        left, wrong = left_in(workspace, verify)
    except Exception as error:  # of any class, as in conr.pipeline.environment
        return [], [f"{type(error).__name__}: {one_line(error)}"]
    return [asdict(stage) for stage in left], wrong


def _lines(facts: dict[str, Any]) -> list[str]:
    """The facts as a table for people."""
    lines = []
    for section, values in facts.items():
        match values:
            case dict():
                lines += [section, *(f"  {name:16} {value}" for name, value in values.items())]
            case [dict(), *_]:
                rows = [f"  {row['stage']:10} {row['state']:10} {row['written']:16}  {row['holds']}" for row in values]
                lines += [section, *(row.rstrip() for row in rows)]
            case [_, *_]:
                lines += [section, *(f"  {text}" for text in values)]
    return lines
