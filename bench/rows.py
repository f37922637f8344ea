"""What the benchmarks of several rows share: a project with packed digits, and a table of the outcomes."""

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from conr.parameters import PrepareStage
from stages import console, params_file, prepare
from stages.experiments import Experiment, Outcome, default_jobs, run_experiments

ROOT = Path(__file__).resolve().parents[1]


def outcomes(
    doc: str, changes: Mapping[str, Any], rows: Sequence[Experiment]
) -> tuple[list[int], dict[str, list[Outcome]]]:
    """Run rows on the digits preset with changes, in a folder that keeps what is finished.

    Args:
        doc: the script's description.
        changes: parameters that all rows share, by dotted key.
        rows: what differs.

    Returns:
        The seeds of the command line, and the outcomes of each row in their order.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--folder", type=Path, default=ROOT / ".conr/bench", help="where finished runs are kept")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.folder)
    content = yaml.safe_load((ROOT / "presets/digits.yaml").read_text())
    params = params_file.changed(params_file.validated(content), changes)
    prepare.run(PrepareStage(prepare=params.prepare), console.progress)
    found = run_experiments(params, rows, arguments.seeds, default_jobs(params.device), console.progress)
    print(f"seeds {', '.join(map(str, arguments.seeds))}; digits preset with {dict(changes)}")
    return arguments.seeds, found


def head(seeds: Sequence[int], others: Sequence[str]) -> str:
    """The first two lines of a table of which `line` makes the others."""
    names = [f"ACC, seed {seeds[0]}", *map(str, seeds[1:]), "median", *others]
    return f"\n| | {' | '.join(names)} |\n|---|{'---|' * len(names)}"


def line(name: str, results: Sequence[Mapping[str, float]], scores: Sequence[str]) -> str:
    """A row in Markdown: ACC of each seed, its median, then mean ± sample standard deviation of the scores."""
    accuracies = [result["acc"] for result in results]
    cells = [f"{value:.3f}" for value in accuracies] + [f"{statistics.median(accuracies):.3f}"]
    for score in scores:
        values = [result[score] for result in results]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        cells.append(f"{statistics.mean(values):.3f} ± {deviation:.3f}")
    return f"| {name} | {' | '.join(cells)} |"
