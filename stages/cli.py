"""The `conr` command: one sub-command a stage, and some beside the pipeline.

Nothing heavy is imported before it is used, so that --help is quick.
"""

import errno
import importlib
import os
import signal
import sys
import time
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand

from conr.errors import UserError
from stages.integers import Integers, integers
from stages.paths import STORE

HELP_FLAGS = {"--help", "-h"}
ONE_SEED = Integers([0])
RESUMED = dict.fromkeys(("pretrain", "finetune", "ablate"), "goes on after the last saved epoch")
GPU_IS_FULL = ("CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
MEMORY_IS_FULL = ("can't allocate memory", "bad_alloc")
LESS_MEMORY = {name: f"lower {name}.batch_size or network.width" for name in ("pretrain", "finetune")}

app = typer.Typer(
    name="conr",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Cluster images without labels.\n\nRun all stages with 'dvc repro', or one with 'conr STAGE'. Every flag is a "
    "key of params.yaml: the file gives the value, the flag overrides it for this run.",
    context_settings={"help_option_names": sorted(HELP_FLAGS)},
)

STAGES = {
    "prepare": "Pack images (digits, or a folder of yours) into one array.",
    "pretrain": "Learn features without labels: instance concordance (BYOL, Eq. 1).",
    "finetune": "Pull groups together: group concordance with ConAff neighbours (ConNR, Eq. 14).",
    "extract": "Export the encoder to ONNX, checked against PyTorch, and embed all images.",
    "evaluate": "Cluster the embeddings with k-means; write scores, figures and the report.",
}


@app.callback()
def load_params(context: typer.Context) -> None:
    """Make params.yaml the default of every flag. Help works without it, and with a broken one."""
    stage = context.invoked_subcommand
    if stage not in STAGES:
        return
    from stages import flags

    try:
        context.default_map = {stage: flags.defaults(stage)}
    except UserError:
        if HELP_FLAGS.isdisjoint(sys.argv):
            raise


class StageCommand(TyperCommand):
    """A stage in the list of commands; what it can do is loaded when it is called."""

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Parse the arguments with the stage's own flags."""
        from stages import flags

        return flags.stage_command(str(self.name), self.help, run_stage).make_context(*arguments, **settings)


def run_stage(name: str, *arguments: object) -> None:
    """Run a stage and print its summary. A stop by Ctrl-C or SIGTERM is no failure: the next run goes on."""
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime would write an identifier into the home folder
    started = time.perf_counter()
    stage = importlib.import_module(f"stages.{name}")
    console = importlib.import_module("stages.console")
    try:
        summary = stage.run(*arguments, console.progress)
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        _fail(f"stopped; the same command {RESUMED.get(name, 'starts from the beginning')}", 128 + number)
    except (MemoryError, RuntimeError) as error:
        message = _out_of_memory(name, error)
        if message is None:
            raise
        raise UserError(message) from error
    typer.echo(f"{name} ({time.perf_counter() - started:.0f} s): {summary}")


def _out_of_memory(name: str, error: Exception) -> str | None:
    """What to say if memory is too small. The text tells: the class that PyTorch has for it may not be loaded."""
    mend = LESS_MEMORY.get(name, "free some")
    if any(sign in str(error) for sign in GPU_IS_FULL):
        return f"{name} does not fit into the GPU's memory; {mend}, or set device: cpu"
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in MEMORY_IS_FULL):
        return f"{name} does not fit into memory; {mend}"
    return None


def main() -> NoReturn:
    """Run the command; a mistake of the user, or a file that cannot be used, becomes one message and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold bytes that are no text
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" while writing {error.filename}" if error.filename else ""
            _fail(
                f"the disk is full{where}; free some space and run the same command again, saved epochs are kept",
                2,
            )
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}", 2)
    sys.exit(0)


def _terminate(number: int, frame: object) -> NoReturn:
    """Leave on SIGTERM as on Ctrl-C: through the context managers that clean up."""
    raise KeyboardInterrupt(number)


def _fail(message: str, code: int) -> NoReturn:
    typer.secho(f"Error: {message}", fg=typer.colors.RED, err=True)
    sys.exit(code)


for _name, _summary in STAGES.items():
    app.command(_name, cls=StageCommand, help=_summary)(lambda: None)


@app.command()
def assign(
    folder: Annotated[Path, typer.Argument(help="Folder of images, searched at any depth")],
    output: Annotated[Path, typer.Option(help="The table to write")] = Path("results/new_assignments.csv"),
    sort_into: Annotated[
        Path | None, typer.Option(help="Also copy the images into this new or empty folder, by cluster")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto takes a GPU if there is one")
    ] = "auto",
) -> None:
    """Sort new images into the clusters of the last run."""
    run_stage("assign", folder, output, sort_into, device)


@app.command()
def preset(
    name: Annotated[str | None, typer.Argument(help="Which one; leave it out for a list")] = None,
) -> None:
    """Start from a preset: write a complete params.yaml and say what it changes."""
    from stages import presets

    typer.echo(presets.listing() if name is None else presets.write(name))


@app.command()
def ablate(
    seeds: Annotated[
        Integers, typer.Option(parser=integers, metavar="0,1,2", help="Seeds; every row is run with each")
    ] = ONE_SEED,
    jobs: Annotated[int, typer.Option(min=0, help="Processes side by side; 0: one a core on a CPU, one on a GPU")] = 0,
) -> None:
    """Run all rows of the paper's ablation (Table 2) on the packed store, and write the table.

    What is finished is kept: the same command goes on where it was stopped.
    """
    from stages import params_file

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
    from stages import params_file

    changes = params_file.settings(settings or [])
    images = [key for key in changes if key.startswith("prepare.")]
    if images:
        raise UserError(
            f"--set {images[0]}: the images are timed as they are packed; change it in {params_file.PARAMS} and run "
            "conr prepare first"
        )
    params = params_file.changed(params_file.validated(params_file.read()), changes)
    params_file.check_together(params)
    params_file.check_against_data(params, STORE / "manifest.json")
    run_stage("estimate", params)
