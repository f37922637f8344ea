"""The flags that say where to embed or to train. They are no parameters: no engine changes the results."""

from typing import Annotated

import typer

from conr.embedding.engines.settings import Engine, EngineName

VARIABLE = "CONR_ENGINE"
PANEL = "Where to compute (the results are the same)"
EngineFlag = Annotated[
    EngineName,
    typer.Option("--engine", envvar=VARIABLE, rich_help_panel=PANEL, help="local: here; ray: by Ray (conr[ray])"),
]
AddressFlag = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT|auto",
        rich_help_panel=PANEL,
        help="Of a Ray cluster; by default RAY_ADDRESS, or a Ray of its own on this machine",
    ),
]
JobsFlag = Annotated[
    int,
    typer.Option(
        "--jobs", min=0, rich_help_panel=PANEL, help="Trainings side by side; 0: one per CPU core, or one per GPU"
    ),
]
ShardFlag = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N|merge",
        rich_help_panel=PANEL,
        help="For array jobs: embed only the I-th of N shares, from 1; merge: use all shares, which must be there",
    ),
]
FLAGS = {"engine": (EngineFlag, "local"), "address": (AddressFlag, None), "shard": (ShardFlag, None)}


def engine_variables(engine: Engine) -> dict[str, str]:
    """The variables that give the stages, which DVC runs, the same engine."""
    return {VARIABLE: engine.name, **({} if engine.address is None else {"RAY_ADDRESS": engine.address})}
