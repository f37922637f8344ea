"""The tables on the digits, as Markdown: rows × seeds with the preset digits.

    make bench-digits         # of README.md: BYOL and ConNR, k-means on pixels and on UMAP; 12 minutes on two CPU cores
    make bench-frameworks     # of docs/experiments.md: other frameworks than BYOL, with fewer epochs; 25 minutes
    make bench-long-tail      # of docs/experiments.md: the largest class is ten times the smallest; 8 minutes

Finished runs are kept in .conr/bench: run the same command to resume. The seeds 0-4 were not used while the preset was
tuned (that was 100 and up); the settings of each framework were chosen on seeds 100 and 101; nothing was tuned for the
long tail. Labels choose the long-tailed images and enter the scores; they steer nothing.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, head, line, parser, run
from sklearn.datasets import load_digits

from conr import Workspace, kmeans, label_scores, load_preset
from conr.evaluation.scores import SCORES, MeanStd
from conr.pipeline.experiments import Experiment, run_experiments
from conr.stages.console import ProgressBar

Scores = Mapping[str, float]

BEFORE, AFTER = "pretrained", "finetuned"  # the features that a row scores: those before ConNR, or those after it
EPOCHS = {"pretrain.epochs": 60, "finetune.epochs": 40, "optimizer.warmup_epochs": 3, "optimizer.schedule_epochs": 100}
PLAIN_PREDICTOR = {"pretrain.predictor_lr_scale": 1.0, "finetune.predictor_lr_scale": 1.0}
SIMSIAM = {"framework.name": "simsiam", **PLAIN_PREDICTOR}
MOCO = {"framework.name": "moco", "finetune.instance": 1.0}
BARLOW_TWINS = {"framework.name": "barlow-twins", "finetune.instance": 1.0}
SCATTERING, BOOST = {"finetune.scattering": 0.1}, {"finetune.boost": 1.0}


@dataclass(frozen=True)
class Table:
    """What to train, and what to show of it."""

    rows: Mapping[str, tuple[str, Mapping[str, Any]]]  # name → features, and parameters that differ from other rows'
    scores: Sequence[str] = ("nmi",)  # the columns after ACC
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the preset, for all rows


TABLES = {
    "digits": Table({"BYOL": (BEFORE, {}), "ConNR": (AFTER, {})}, ("nmi", "ari")),
    "frameworks": Table(
        {
            "SimSiam": (BEFORE, SIMSIAM),
            "SimSiam + ConNR": (AFTER, SIMSIAM),
            "MoCo v2": (BEFORE, MOCO),
            "MoCo v2 + ConNR": (AFTER, MOCO),
            "Barlow Twins": (BEFORE, BARLOW_TWINS),
            "Barlow Twins + ConNR": (AFTER, BARLOW_TWINS),
        },
        changes=EPOCHS,
    ),
    "long-tail": Table(
        {
            "BYOL": (BEFORE, {}),
            "BYOL, as many epochs": (AFTER, {"neighborhood.neighbors": "none"}),
            "ConNR": (AFTER, {}),
            "ConNR + prototype scattering": (AFTER, SCATTERING),
            "ConNR + DCBoost": (AFTER, BOOST),
            "ConNR + both": (AFTER, {**SCATTERING, **BOOST}),
        },
        ("class_acc", "nmi"),
        {"prepare.imbalance": 10.0},
    ),
}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("table", choices=TABLES)
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    flags.add_argument("--folder", type=Path, default=ROOT / ".conr/bench", help="where finished runs are kept")
    given = flags.parse_args()
    table, workspace = TABLES[given.table], Workspace.at(given.folder)
    parameters = load_preset("digits").changed(table.changes)
    run("prepare", workspace, parameters)
    experiments = [Experiment(name, changes) for name, (_, changes) in table.rows.items()]
    found = run_experiments(workspace, parameters, experiments, given.seeds, 0, ProgressBar())
    rows = {name: [getattr(one, features) for one in found[name]] for name, (features, _) in table.rows.items()}
    print(f"seeds {', '.join(map(str, given.seeds))}; digits preset with {table.changes}\n")
    print_table(given.seeds, (baselines(given.seeds) if given.table == "digits" else {}) | rows, table.scores)


def baselines(seeds: Sequence[int]) -> dict[str, list[Scores]]:
    """Scores of plain k-means with as many initializations as the preset has, on pixels and on UMAP's coordinates."""
    from umap import UMAP

    images, labels = load_digits(return_X_y=True)
    rows = defaultdict(list)
    for seed in seeds:
        embedded = UMAP(n_components=10, random_state=seed, n_jobs=1).fit_transform(images)
        for name, features in (("k-means on pixels", images), ("UMAP + k-means", embedded)):
            found = kmeans(features.astype(np.float32), 10, seed=seed, n_init=40, spherical=False)
            rows[name].append(label_scores(labels, found.assignments))
    return dict(rows)


def print_table(seeds: Sequence[int], rows: Mapping[str, Sequence[Scores]], scores: Sequence[str]) -> None:
    """Print ACC of each seed, its median, then mean ± sample standard deviation of ACC and of other scores."""
    print(head("ACC, seed", *seeds, "median", "mean ± std", *(SCORES[score].title for score in scores)))
    for name, results in rows.items():
        accuracies = [result["acc"] for result in results]
        means = [MeanStd.of(result[score] for result in results) for score in ("acc", *scores)]
        print(line(name, *(f"{cell:.3f}" for cell in (*accuracies, statistics.median(accuracies), *means))))


if __name__ == "__main__":
    main()
