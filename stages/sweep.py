"""sweep: the experiments that DVC has run, as a figure of scores against one parameter or two (Fig. 3a, 3b)."""

import csv
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from conr.errors import UserError
from conr.files import atomic_file
from conr.parameters import ParamsFile
from conr.progress import Progress
from conr.report.paper_figures import pair_sweep, sweep
from stages.params_file import PARAMS, leaves
from stages.paths import SWEEPS

SCORES = ("acc", "nmi", "ari")
REPEATS = ("seed", "seeds")  # may differ between experiments of one sweep


def run(parameters: list[str], progress: Progress) -> str:
    """Draw the experiments that differ from the workspace in these parameters (and seeds) only; returns the summary."""
    known = [".".join(key) for key, _ in leaves(ParamsFile)]
    for parameter in parameters:
        if parameter not in known:
            raise UserError(f"{parameter} is no parameter; conr STAGE --help lists them")
        if parameters.count(parameter) > 1:
            raise UserError(f"{parameter} is named twice; name two different parameters")
    with progress("sweep", 2) as advance:
        rows = comparable(experiments(), parameters, known)
        advance(1, note=f"{len(rows)} experiments")
        if len({tuple(row[parameter] for parameter in parameters) for row in rows}) < 2:
            example = " ".join(f"-S '{parameter}=…,…'" for parameter in parameters)
            raise UserError(
                "there are not two experiments yet that differ from the workspace in nothing but "
                f"{' and '.join(parameters)}; queue some with: dvc exp run --queue {example}; dvc queue start"
            )
        SWEEPS.mkdir(parents=True, exist_ok=True)
        path = SWEEPS / "-".join(parameters)
        table, figure = path.with_name(path.name + ".csv"), path.with_name(path.name + ".png")
        _write(rows, parameters, table)
        if len(parameters) == 1:
            sweep(rows, parameters[0], figure)
        else:
            pair_sweep(rows, parameters[0], parameters[1], figure)
        advance(1)
    return f"{len(rows)} experiments in {figure} and {table}"


def experiments() -> list[dict[str, str]]:
    """What `dvc exp show` knows: the workspace first, then commits and experiments from the newest, by column.

    Raises:
        UserError: DVC cannot show them.
    """
    shown = _dvc("exp", "show", "--csv", "--all-commits")
    if shown.returncode != 0:
        raise UserError(f"dvc exp show failed: {shown.stderr.strip()}")
    # Where a metric has the name of a parameter, DVC puts the file in front of the latter.
    rows = [
        {name.removeprefix(f"{PARAMS}:"): value for name, value in row.items()}
        for row in csv.DictReader(shown.stdout.splitlines())
    ]
    if _dvc("status", "--quiet").returncode != 0:
        rows[0].update(dict.fromkeys(SCORES, ""))  # of older parameters than those that stand there now
    return rows


def _dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("dvc")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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
            raise UserError(f"{key} = {workspace.get(key)} is no number, so there is no place for it on an axis")
    fixed = [key for key in known if key not in (*parameters, *REPEATS)]
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        if math.isnan(_number(row.get("acc", ""))) or any(row.get(key) != workspace.get(key) for key in fixed):
            continue
        identity = tuple(row.get(key, "") for key in (*parameters, *REPEATS))
        found.setdefault(identity, {name: _number(row.get(name, "")) for name in (*parameters, *SCORES)})
    return list(found.values())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _write(rows: list[dict[str, float]], parameters: list[str], path: Path) -> None:
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*parameters, *SCORES], lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: [row[parameter] for parameter in parameters]))
