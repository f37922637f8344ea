"""The `conr` command: one sub-command a stage, with flags made from the declarations in conr.parameters."""

import errno
import importlib
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_origin

import typer
from pydantic.fields import FieldInfo

from conr.errors import UserError
from conr.parameters import (
    Device,
    EvaluateStage,
    ExtractStage,
    FinetuneStage,
    Parameters,
    PrepareStage,
    PretrainStage,
)
from stages import console, params_file, presets
from stages.paths import STORE

HELP_FLAGS = {"--help", "-h"}

app = typer.Typer(
    name="conr",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Cluster images without labels.\n\nRun all stages with 'dvc repro', or one with 'conr STAGE'. Every flag is a "
    "key of params.yaml: the file gives the value, the flag overrides it for this run.",
    context_settings={"help_option_names": sorted(HELP_FLAGS)},
)

STAGES: dict[str, tuple[type[Parameters], str]] = {
    "prepare": (PrepareStage, "Pack images (digits, or a folder of yours) into one array."),
    "pretrain": (PretrainStage, "Learn features without labels: instance concordance (BYOL, Eq. 1)."),
    "finetune": (
        FinetuneStage,
        "Pull groups together: group concordance with ConAff neighbours (ConNR, Eq. 14).",
    ),
    "extract": (ExtractStage, "Export the encoder to ONNX, checked against PyTorch, and embed all images."),
    "evaluate": (EvaluateStage, "Cluster the embeddings with k-means; write scores, figures and the report."),
}


@app.callback()
def load_params(context: typer.Context) -> None:
    """Make params.yaml the default of every flag. Help works without it, and with a broken one."""
    if context.invoked_subcommand not in STAGES:
        return
    try:
        content = params_file.read()
    except UserError:
        if HELP_FLAGS.isdisjoint(sys.argv):
            raise
        return
    context.default_map = {
        stage: {key[-1]: params_file.lookup(content, key) for key, _ in params_file.leaves(view)}
        for stage, (view, _) in STAGES.items()
    }


def stage_command(name: str, view: type[Parameters], summary: str) -> Callable[..., None]:
    """The command of a stage: a flag for each parameter that the stage reads, and its run."""
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

    command.__doc__ = summary
    signature = [
        inspect.Parameter(
            key[-1], inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=_option(key, field)
        )
        for key, field in fields.items()
    ]
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    return command


def run_stage(name: str, *arguments: object) -> None:
    """Run a stage and print its summary. A stop by Ctrl-C or SIGTERM is no failure: the next run goes on."""
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime would write an identifier into the home folder
    started = time.perf_counter()
    # Here, not above: heavy imports only where they are used, so that --help is quick.
    stage = importlib.import_module(f"stages.{name}")
    try:
        summary = stage.run(*arguments, console.progress)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on after the last finished epoch", 128 + signal.SIGINT)
    typer.echo(f"{name} ({time.perf_counter() - started:.0f} s): {summary}")


def main() -> NoReturn:
    """Run the command; a mistake of the user becomes one message and exit code 2."""
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        _fail(
            f"the disk is full{where}; free some space and run the same command again, finished epochs are kept",
            2,
        )
    sys.exit(0)


class Integers(list[int]):
    """Whole numbers in one flag, as in --seeds 0,1,2."""


ONE_SEED = Integers([0])


def _integers(value: str | list[int]) -> list[int]:
    """From a flag, or from the list that params.yaml gives as its default."""
    if not isinstance(value, str):
        return list(value)
    try:
        return [int(part) for part in value.replace(",", " ").split()]
    except ValueError as error:
        raise typer.BadParameter(f"{value!r} should be whole numbers such as 0,1,2") from error


def _option(key: params_file.Key, field: FieldInfo) -> Any:
    flag = "--" + key[-1].replace("_", "-")
    if get_origin(field.annotation) is list:
        return Annotated[Integers, typer.Option(flag, parser=_integers, metavar="0,1,2", help=field.description)]
    names = f"{flag}/--no-{flag[2:]}" if field.annotation is bool else flag
    limits = ", ".join(text for text in map(_limit, field.metadata) if text)
    description = f"{field.description}{f' [{limits}]' if limits else ''}"
    panel = f"{key[0]}: in params.yaml" if len(key) > 1 else "top level of params.yaml"
    return Annotated[field.annotation, typer.Option(names, help=description, rich_help_panel=panel)]


def _limit(constraint: object) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return " ".join(f"{sign} {getattr(constraint, name)}" for name, sign in signs.items() if hasattr(constraint, name))


def _terminate(number: int, frame: object) -> NoReturn:
    """Leave on SIGTERM as on Ctrl-C: through the context managers that clean up."""
    _fail("stopped; the same command goes on after the last finished epoch", 128 + number)


def _fail(message: str, code: int) -> NoReturn:
    typer.secho(f"Error: {message}", fg=typer.colors.RED, err=True)
    sys.exit(code)


for _name, (_view, _summary) in STAGES.items():
    app.command(_name)(stage_command(_name, _view, _summary))


@app.command()
def assign(
    folder: Annotated[Path, typer.Argument(help="Folder of images, searched at any depth")],
    output: Annotated[Path, typer.Option(help="The table to write")] = Path("results/new_assignments.csv"),
    sort_into: Annotated[Path | None, typer.Option(help="Also copy the images here, a folder per cluster")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute; auto takes a GPU if there is one")] = "auto",
) -> None:
    """Sort new images into the clusters of the last run."""
    run_stage("assign", folder, output, sort_into, device)


@app.command()
def preset(
    name: Annotated[str | None, typer.Argument(help="Which one; leave it out for a list")] = None,
) -> None:
    """Start from a preset: write a complete params.yaml and say what it changes."""
    typer.echo(presets.listing() if name is None else presets.write(name))


@app.command()
def ablate(
    seeds: Annotated[
        Integers, typer.Option(parser=_integers, metavar="0,1,2", help="Seeds; every row is run with each")
    ] = ONE_SEED,
    jobs: Annotated[int, typer.Option(min=0, help="Processes side by side; 0: one a core on a CPU, one on a GPU")] = 0,
) -> None:
    """Run all rows of the paper's ablation (Table 2) on the packed store, and write the table.

    What is finished is kept: the same command goes on where it was stopped.
    """
    params = params_file.validated(params_file.read())
    params_file.check_against_data(params, STORE / "manifest.json")
    run_stage("ablate", params, list(seeds), jobs)


@app.command()
def sweep(
    parameters: Annotated[list[str], typer.Argument(help="One key of params.yaml, such as fr; or two, such as k1 k2")],
) -> None:
    """Draw the scores of DVC's experiments against one parameter or two (Fig. 3a, 3b).

    First run them: dvc exp run --queue -S 'fr=0.7,0.8,0.9,1.0'; dvc queue start.
    """
    if len(parameters) > 2:
        raise UserError(f"{len(parameters)} parameters do not fit into one figure; name one or two")
    run_stage("sweep", parameters)


@app.command()
def estimate(
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-S", metavar="KEY=VALUE", help="Another value for a key, such as -S pretrain.epochs=800"
        ),
    ] = None,
) -> None:
    """Say how long training will take on this device, and how much memory and disk, after timing a few steps.

    It takes half a minute for small networks, some minutes for large ones on a CPU, and leaves nothing behind.
    """
    changes = params_file.settings(settings or [])
    params = params_file.changed(params_file.validated(params_file.read()), changes)
    params_file.check_together(params)
    params_file.check_against_data(params, STORE / "manifest.json")
    run_stage("estimate", params)
