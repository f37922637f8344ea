"""Which of DVC's experiments a sweep draws; `test_repro.py` sweeps real ones."""

import csv
import io
import math
import subprocess
from pathlib import Path

import pytest

from conr.errors import UserError
from conr.pipeline.sweep import comparable, experiments, sweep
from conr.pipeline.workspace import Workspace

KNOWN = ["seed", "seeds", "k1", "k2", "fr", "prepare.source"]
Shown = dict[str, str]


def shown(acc: str = "0.5", **changes: str) -> Shown:
    """An experiment as `dvc exp show --csv` has it, with some cells replaced."""
    cells = {"seed": "0", "seeds": "[]", "k1": "20", "k2": "4", "fr": "0.8", "prepare.source": "digits"}
    return cells | {"acc": acc, "nmi": "0.4", "ari": "0.3"} | {key.replace("__", "."): v for key, v in changes.items()}


def accuracies(rows: list[Shown], *parameters: str) -> list[tuple[float, ...]]:
    """(the parameters' values …, accuracy) of the rows that are drawn, sorted."""
    found = comparable(rows, list(parameters), KNOWN)
    assert all(list(row) == [*parameters, "acc", "nmi", "ari"] for row in found)
    return sorted(tuple(row[name] for name in (*parameters, "acc")) for row in found)


def test_rows_become_numbers() -> None:
    assert comparable([shown(), shown(fr="0.9", acc="0.6")], ["fr"], KNOWN) == [
        {"fr": 0.8, "acc": 0.5, "nmi": 0.4, "ari": 0.3},
        {"fr": 0.9, "acc": 0.6, "nmi": 0.4, "ari": 0.3},
    ]


def test_an_experiment_that_differs_from_the_workspace_in_another_parameter_is_left_out() -> None:
    rows = [shown(), shown(fr="0.9", k1="10"), shown(fr="0.7", prepare__source="folder"), shown(fr="1.0")]
    assert accuracies(rows, "fr") == [(0.8, 0.5), (1.0, 0.5)]
    assert accuracies(rows, "fr", "k1") == [(0.8, 20, 0.5), (0.9, 10, 0.5), (1.0, 20, 0.5)]


def test_an_experiment_from_before_a_parameter_was_there_is_left_out() -> None:
    assert accuracies([shown(), shown(fr="0.9", k2="")], "fr") == [(0.8, 0.5)]


def test_an_experiment_that_is_shown_twice_counts_once() -> None:
    rows = [shown(), shown(), shown(fr="0.9", acc="0.6"), shown(fr="0.9", acc="0.6")]
    assert accuracies(rows, "fr") == [(0.8, 0.5), (0.9, 0.6)]


def test_of_runs_with_the_same_parameters_the_newest_counts() -> None:
    """`dvc exp show` lists the workspace first, then commits from the newest to the oldest."""
    assert accuracies([shown(acc="0.7"), shown(acc="0.6"), shown(acc="0.5")], "fr") == [(0.8, 0.7)]


def test_seeds_are_repeats() -> None:
    rows = [shown(), shown(seed="1", acc="0.6"), shown(seed="2", acc="0.7"), shown(seed="2", acc="0.7")]
    assert accuracies(rows, "fr") == [(0.8, 0.5), (0.8, 0.6), (0.8, 0.7)]


def test_lists_of_seeds_are_repeats_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC writes the file's name before `seeds`, as metrics.json has a number of that name."""
    rows = [shown(acc="0.5"), shown(acc="0.6", seeds="[1, 2]"), shown(acc="0.7", seeds="[3, 4]")]
    table = io.StringIO()
    names = {"seeds": "params.yaml:seeds"}
    writer = csv.DictWriter(table, [names.get(name, name) for name in rows[0]] + ["results/metrics.json:seeds"])
    writer.writeheader()
    for row in [*rows, rows[-1]]:
        cells = {names.get(name, name): cell for name, cell in row.items()}
        writer.writerow(cells | {"results/metrics.json:seeds": "2"})
    output = subprocess.CompletedProcess([], 0, table.getvalue(), "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: output)
    assert accuracies(experiments(Path()), "fr") == [(0.8, 0.5), (0.8, 0.6), (0.8, 0.7)]


@pytest.mark.parametrize("missing", ["", "!", "-"])
def test_an_experiment_without_scores_is_left_out(missing: str) -> None:
    """DVC writes nothing for an experiment that waits, ! for a commit without metrics.json."""
    rows = [shown(), shown(acc=missing, fr="0.9"), shown(acc=missing), shown(fr="0.7", acc="0.6")]
    assert accuracies(rows, "fr") == [(0.7, 0.6), (0.8, 0.5)]


def test_a_workspace_without_scores_is_still_what_others_are_compared_with() -> None:
    assert accuracies([shown(acc=""), shown(fr="0.9"), shown(fr="0.7", k1="10")], "fr") == [(0.9, 0.5)]


def test_a_single_missing_score_is_not_a_number() -> None:
    (row,) = comparable([shown(nmi="")], ["fr"], KNOWN)
    assert math.isnan(row["nmi"])
    assert row["acc"] == 0.5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (["nonsense"], "there is no parameter nonsense"),
        (["fr", "finetune"], "there is no parameter finetune"),
        (["k1", "k2", "fr"], "3 parameters do not fit into one figure; name one or two"),
        (["fr", "fr"], "fr is named twice; name two different parameters"),
    ],
)
def test_what_cannot_be_swept_is_refused(parameters: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        sweep(Workspace.at(tmp_path), parameters)


def test_a_parameter_that_is_no_number_cannot_be_swept() -> None:
    with pytest.raises(UserError, match=r"prepare\.source = digits is not a number"):
        comparable([shown()], ["prepare.source"], KNOWN)


def test_outside_a_repository_the_error_is_dvc_s(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dvc exp show failed: ERROR: you are not inside of a DVC repository"):
        sweep(Workspace.at(tmp_path), ["fr"])
