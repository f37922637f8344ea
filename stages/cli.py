"""The `conr` command: one sub-command per stage, and some beside the pipeline.

Nothing heavy is imported before it is used, so that --help is quick.
"""

import errno
import importlib
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from io import TextIOWrapper
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand

from conr.embedding.engines.settings import Engine
from conr.errors import Note, UserError, disk_is_full, one_line
from conr.text import printable

from . import about, memory
from .engines import AddressFlag, EngineFlag, JobsFlag, ShardFlag
from .integers import Integers, RowsFlag, SeedsFlag

HELP_FLAGS = {"--help", "-h"}
ONE_SEED, ALL_ROWS = Integers([0]), Integers(range(1, 8))
RESUMED = dict.fromkeys(("pretrain", "finetune", "ablate"), "resume after the last saved epoch")
RESUMED |= dict.fromkeys(("prepare", "cluster"), "resume: what is whole is kept")
MODULES = {"cluster": "cluster", "clusters": "cluster"}
MODULES |= dict.fromkeys(("assign", "sort", "write_webdataset"), "sorting")
SHOW_WARNING = warnings.showwarning

LinkName = Literal["none", "hard", "symbolic"]
LINKS = "none: copy; hard or symbolic: link instead"
app = typer.Typer(
    name="conr",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Cluster images without labels.\n\nStart a project with 'conr new'. Run all stages with 'dvc repro', one with "
    "'conr STAGE'. Flags of a stage are keys of params.yaml: the file gives values, a flag overrides one for this run.",
    context_settings={"help_option_names": sorted(HELP_FLAGS)},
)

STAGES = {
    "prepare": "Pack images (digits, a folder of yours or a data set of the paper) into one array.",
    "pretrain": "Learn features without labels: instance concordance (BYOL, Eq. 1).",
    "finetune": "Refine the features: group concordance with ConAff neighbors (ConNR, Eq. 14).",
    "extract": "Export the encoder to ONNX, checked against PyTorch, and embed all images.",
    "evaluate": "Cluster the embeddings with k-means; write scores, figures and the report.",
}


class StageCommand(TyperCommand):
    """A stage in the list of commands; its flags are made when it is called."""

    def make_context(self, info_name: str | None, args: list[str], *others: Any, **settings: Any) -> Any:
        """Parse the arguments with the stage's own flags."""
        from . import flags

        asks_for_help = not HELP_FLAGS.isdisjoint(args)
        return flags.stage_context(str(self.name), self.help, run, asks_for_help, info_name, args, *others, **settings)


def run(name: str, *arguments: Any) -> None:
    """Run a command in the current folder and print its summary; Ctrl-C and SIGTERM print how to resume.

    Args:
        name: of the command: of a stage, or of a function in `conr.stages.beside` or one of MODULES.
        arguments: what it takes between the workspace and the observer.
    """
    signal.signal(signal.SIGTERM, _terminate)
    warnings.showwarning = _note
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would tell of its fonts and their cache
    if "DVC_STAGE" in os.environ:  # DVC runs this, and does not stop it when it is stopped itself
        importlib.import_module("conr.processes").end_with_parent()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime would write an identifier into the home folder
    started = time.perf_counter()
    module, function = (name, "run") if name in STAGES else (MODULES.get(name, "beside"), name)
    try:
        call = getattr(importlib.import_module(f".{module}", __package__), function)
        observer = importlib.import_module(".console", __package__).ProgressBar()
        workspace = importlib.import_module("conr.pipeline.workspace").Workspace.here()
        if name in STAGES:
            _check_stage(name, workspace, *arguments)
        summary = call(workspace, *arguments, observer)
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        _fail(f"stopped; run the same command to {RESUMED.get(name, 'start again')}", 128 + number)
    except (MemoryError, RuntimeError) as error:
        message = memory.full(name, error)
        if message is None:
            raise
        raise UserError(message) from error
    _say(f"{name} ({time.perf_counter() - started:.0f} s): {summary}")


def _check_stage(name: str, workspace: Any, parameters: Any, *others: Any) -> None:
    """Check all parameters against the images, those of later stages too; compare them with those of earlier runs."""
    if name == "prepare":
        return
    from conr.data.store import load_manifest
    from conr.pipeline.checks import check_data
    from conr.pipeline.records import note_other_parameters

    if workspace.store.exists():
        check_data(parameters, load_manifest(workspace.store))
    note_other_parameters(workspace, name, parameters)


def main() -> NoReturn:
    """Run the command; a mistake of the user, or a file that cannot be used, becomes one message and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold bytes that are no text
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except ModuleNotFoundError as error:
        _fail(f"this command needs {error.name}, which is not installed here; pip install conr installs it", 2)
    except OSError as error:
        if disk_is_full(error):
            where = f" while writing {error.filename}" if error.filename else ""
            _fail(f"the disk is full{where}; free some space and run the same command again, saved epochs are kept", 2)
        if error.filename is None:
            _unexpected(error)
        in_the_way = error.errno in (errno.EEXIST, errno.ENOTDIR)
        remedy = (
            "; a folder is needed there: rename it, or set TMPDIR if it is in a temporary folder" if in_the_way else ""
        )
        _fail(f"{error.filename}: {error.strerror}{remedy}", 2)
    except Exception as error:
        _unexpected(error)
    sys.exit(0)


def _unexpected(error: Exception) -> NoReturn:
    """The last resort: one message, and a file with what helps to find the fault."""
    with NamedTemporaryFile(
        "w", prefix="conr-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
    ) as file:
        traceback.print_exception(error, file=file)
    what = f"{type(error).__name__}: {one_line(error)}".rstrip(": ")
    _fail(f"{what}. This is a fault of conr: please report it with {file.name}; saved epochs are kept", 1)


def _terminate(number: int, frame: object) -> NoReturn:
    """Leave on SIGTERM as on Ctrl-C: through the context managers that clean up."""
    raise KeyboardInterrupt(number)


def _say(text: str, err: bool = False) -> None:
    """Print text of several lines; what else in it acts on a terminal (a file name may) becomes visible."""
    typer.echo(printable(text, keep="\n"), err=err)


def _note(message: Warning | str, category: type[Warning], *others: Any, **named: Any) -> None:
    """Show conr's own notes like the rest of its messages."""
    if issubclass(category, Note):
        _say(f"Note: {message}", err=True)
    else:
        SHOW_WARNING(message, category, *others, **named)


def _fail(message: str, code: int) -> NoReturn:
    text = "Error: " + printable(message, keep="\n")
    typer.echo(text if os.environ.get("NO_COLOR") else typer.style(text, fg=typer.colors.RED), err=True)
    sys.exit(code)


app.callback()(about.options)
for _name, _summary in STAGES.items():
    app.command(_name, cls=StageCommand, help=_summary)(lambda: None)


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(help="The project's folder, new or empty")],
    preset: Annotated[str, typer.Option(help="What to start from; conr preset lists them")] = "digits",
    git: Annotated[bool, typer.Option(help="Make it a git repository, which dvc exp needs")] = True,
) -> None:
    """Make a project: params.yaml and dvc.yaml in a folder of their own, in which dvc repro runs all stages."""
    from conr.pipeline import project

    _say(project.make(folder, preset, git))


@app.command()
def cluster(
    folder: Annotated[Path, typer.Argument(help="Folder of images, searched at any depth")],
    clusters: Annotated[
        str | None, typer.Option(metavar="K|auto|A-B", help="How many groups; at first auto: proposed")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for all that is made; by default conr-NAME here, or the project that you are in"),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="efficientnet-lite0 (at first), efficientnet-lite2, onnx:PATH, weights:PATH or scratch"
        ),
    ] = None,
    refine: Annotated[bool, typer.Option("--refine", help="Also train heads on the features with ConNR")] = False,
    labels: Annotated[
        Literal["none", "folder", "parent"] | None,
        typer.Option(help="For scores only: the first folder below FOLDER, or the one that holds the file"),
    ] = None,
    engine: EngineFlag = "local",
    address: AddressFlag = None,
) -> None:
    """Sort a folder of photos into groups: one command, minutes, no labels, no git.

    It makes a project, for params.yaml and all other commands. Run it again to resume.
    """
    run("cluster", folder, clusters, output, backbone, refine, labels, Engine(engine, address))


@app.command()
def clusters(
    number: Annotated[str, typer.Argument(metavar="K|auto|A-B", help="A number, or candidates such as 2-40")],
) -> None:
    """Compare numbers of clusters without labels and make the results with one. Set clusters to keep it."""
    from conr.pipeline import params_file

    run("clusters", params_file.read(), number)


@app.command()
def assign(
    folder: Annotated[Path, typer.Argument(help="Folder of images, searched at any depth")],
    output: Annotated[Path, typer.Option(help="The table to write")] = Path("results/new_assignments.csv"),
    sort_into: Annotated[
        Path | None, typer.Option(help="Also copy the images into this new folder, by cluster; run again to resume")
    ] = None,
    link: Annotated[LinkName, typer.Option(help=LINKS)] = "none",
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto takes a GPU if there is one")
    ] = "auto",
    embeddings: Annotated[
        Path | None,
        typer.Option(help="Also keep embeddings and clusters in this folder, as Parquet files; run again to resume"),
    ] = None,
    webdataset: Annotated[
        bool,
        typer.Option("--webdataset", help="The images are in tar files below FOLDER, as for prepare.source webdataset"),
    ] = False,
    engine: EngineFlag = "local",
    address: AddressFlag = None,
    shard: ShardFlag = None,
) -> None:
    """Sort new images into the clusters of the last run."""
    run("assign", folder, output, sort_into, link, device, embeddings, webdataset, Engine(engine, address, shard))


@app.command()
def sort(
    target: Annotated[Path, typer.Argument(help="New folder for one folder per cluster; run again to resume")],
    link: Annotated[LinkName, typer.Option(help=LINKS)] = "none",
    webdataset: Annotated[bool, typer.Option("--webdataset", help="Tar files with the clusters instead")] = False,
) -> None:
    """Copy or link the images of the last run into one folder per cluster; originals are never moved or changed."""
    from conr.pipeline import params_file

    run("write_webdataset" if webdataset else "sort", params_file.read(), target, link)


@app.command()
def name(
    cluster: Annotated[int | None, typer.Argument(help="Number of a cluster; leave it out to apply the table")] = None,
    text: Annotated[str | None, typer.Argument(metavar="NAME", help="Its name; leave it out to remove it")] = None,
) -> None:
    """Name a cluster: the page, the tables, clusterer.onnx and sorted folders show the name at once.

    Names are kept in cluster_names.csv, which you can edit; they count only for the clustering that they were given to.
    """
    run("name", cluster, text)


@app.command()
def preset(
    name: Annotated[str | None, typer.Argument(help="Which one; leave it out for a list")] = None,
) -> None:
    """Start from a preset: write a complete params.yaml and say what it changes."""
    from conr.pipeline import params_file, presets

    _say(presets.listing() if name is None else presets.write(name, Path(params_file.NAME)))


@app.command()
def ablate(
    seeds: SeedsFlag = ONE_SEED,
    rows: RowsFlag = ALL_ROWS,
    jobs: JobsFlag = 0,
    engine: EngineFlag = "local",
    address: AddressFlag = None,
) -> None:
    """Run all rows of the paper's ablation (Table 2) on the packed store, and write the table.

    Finished runs are kept: run the same command to resume.
    """
    from conr.pipeline import params_file

    run("ablate", params_file.read(), list(seeds), list(rows), jobs, Engine(engine, address))


@app.command()
def sweep(
    parameters: Annotated[list[str], typer.Argument(help="One key of params.yaml, such as fr; or two, such as k1 k2")],
) -> None:
    """Draw the scores of DVC's experiments against one parameter or two (Fig. 3a, 3b).

    First run them: dvc exp run --queue -S 'fr=0.7,0.8,0.9,1.0'; dvc queue start.
    """
    run("sweep", parameters)


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

    It takes half a minute for small networks, some minutes for large ones on a CPU, and keeps no files.
    """
    from conr.pipeline import params_file

    changes = params_file.assignments(settings or [])
    images = [key for key in changes if key.startswith("prepare.")]
    if images:
        raise UserError(
            f"--set {images[0]}: the images are timed as they are packed; change it in {params_file.NAME} and run "
            "conr prepare first"
        )
    run("estimate", params_file.read().changed(changes))


app.command()(about.info)
