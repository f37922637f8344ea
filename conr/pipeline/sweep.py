"""The experiments that DVC has run, as a figure of scores against one parameter or two (Fig. 3a, 3b)."""

import csv
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from conr.errors import UserError
from conr.evaluation.scores import AGREEMENT
from conr.files import write_table
from conr.observer import SILENT, Observer
from conr.parameters import Parameters
from conr.parameters.keys import leaves
from conr.pipeline import params_file
from conr.pipeline.workspace import Workspace
from conr.report.figures import save
from conr.report.paper_figures import pair_sweep_figure, sweep_figure

REPEATS = ("seed", "seeds")  # may differ between experiments of one sweep


def sweep(workspace: Workspace, parameters: list[str], observer: Observer = SILENT) -> tuple[int, Path, Path]:
    """Draw the experiments that differ from the workspace in these parameters (and seeds) only.

    Args:
        workspace: of a DVC project.
        parameters: one key of params.yaml or two.
        observer: notified of both parts of the work.

    Returns:
        How many experiments, the figure and the table.

    Raises:
        UserError: a key is unknown or no number, or there are too few experiments.
    """
    known = [".".join(key) for key, _ in leaves(Parameters)]
    if len(parameters) > 2:
        raise UserError(f"{len(parameters)} parameters do not fit into one figure; name one or two")
    for parameter in parameters:
        if parameter not in known:
            raise UserError(f"there is no parameter {parameter}; conr STAGE --help lists them")
        if parameters.count(parameter) > 1:
            raise UserError(f"{parameter} is named twice; name two different parameters")
    with observer.task("sweep", 2):
        rows = comparable(experiments(workspace.root), parameters, known)
        observer.step_done(note=f"{len(rows)} experiments")
        if len({tuple(row[parameter] for parameter in parameters) for row in rows}) < 2:
            example = " ".join(f"-S '{parameter}=…,…'" for parameter in parameters)
            raise UserError(
                "there are not two experiments yet that differ from the workspace in nothing but "
                f"{' and '.join(parameters)}; queue some with: dvc exp run --queue {example}; dvc queue start"
            )
        path = workspace.sweeps / "-".join(parameters)
        table, figure = path.with_name(path.name + ".csv"), path.with_name(path.name + ".png")
        columns = [*parameters, *AGREEMENT]
        ordered = sorted(rows, key=lambda row: [row[parameter] for parameter in parameters])
        write_table(table, columns, ([row[column] for column in columns] for row in ordered))
        drawn = sweep_figure(rows, *parameters) if len(parameters) == 1 else pair_sweep_figure(rows, *parameters)
        save(drawn, figure)
        observer.step_done()
    return len(rows), figure, table


def experiments(project: Path) -> list[dict[str, str]]:
    """The rows of `dvc exp show`: the workspace first, then commits and experiments from the newest, by column.

    Raises:
        UserError: DVC cannot show them.
    """
    shown = _dvc(project, "exp", "show", "--csv", "--all-commits")
    if shown.returncode != 0:
        raise UserError(f"dvc exp show failed: {shown.stderr.strip()}")
    # Where a metric has the name of a parameter, DVC puts the file in front of the latter.
    rows = [
        {name.removeprefix(f"{params_file.NAME}:"): value for name, value in row.items()}
        for row in csv.DictReader(shown.stdout.splitlines())
    ]
    if _dvc(project, "status", "--quiet").returncode != 0:
        rows[0].update(dict.fromkeys(AGREEMENT, ""))  # of older parameters than the current ones
    return rows


def _dvc(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


def comparable(
    shown: Iterable[Mapping[str, str]], parameters: list[str], known: Iterable[str]
) -> list[dict[str, float]]:
    """The rows that differ from the first one in the parameters and seeds only, each once, as numbers.

    Args:
        shown: columns of each experiment, the workspace first, then the newest; of equal ones the first counts.
        parameters: keys that may differ.
        known: keys of all parameters.

    Raises:
        UserError: a parameter is no number.
    """
    workspace, *_ = rows = list(shown)
    for key in parameters:
        if math.isnan(_number(workspace.get(key, ""))):
            raise UserError(f"{key} = {workspace.get(key)} is not a number, so it cannot be drawn on an axis")
    fixed = [key for key in known if key not in (*parameters, *REPEATS)]
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        if math.isnan(_number(row.get("acc", ""))) or any(row.get(key) != workspace.get(key) for key in fixed):
            continue
        identity = tuple(row.get(key, "") for key in (*parameters, *REPEATS))
        found.setdefault(identity, {name: _number(row.get(name, "")) for name in (*parameters, *AGREEMENT)})
    return list(found.values())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
