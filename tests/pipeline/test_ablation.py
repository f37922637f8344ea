"""The paper's ablation: its rows, its table, and the command that can be run again."""

import os
import statistics
from pathlib import Path
from typing import Any

import pytest
from project import refused, run, run_stages, table, tiny, write_params

from conr.data.store import Manifest
from conr.errors import UserError
from conr.pipeline import ablation, experiments
from conr.pipeline.ablation import ROWS, ablate
from conr.pipeline.experiments import Outcome
from conr.pipeline.report import benchmark
from conr.pipeline.workspace import Workspace
from conr.training.weights import load_weights

# 492 digits and one epoch: enough that runs differ.
SMALL: dict[str, Any] = {
    "prepare.imbalance": 60.0,
    "pretrain.epochs": 1,
    "finetune.epochs": 1,
    "finetune.batch_size": 128,
    "evaluate.n_init": 2,
}
PAPER = {  # Table 2: NMI, ACC, ARI
    "InC": "79.4 87.8 76.6",
    "InC + LN": "81.9 89.6 78.7",
    "InC + ConAff": "84.6 91.1 82.4",
    "InC + LN + OBD": "83.9 91.1 82.3",
    "InC + LN + OBD + PR": "84.8 91.6 84.2",
    "InC + ConAff + OBD": "85.7 92.5 85.1",
    "InC + ConAff + OBD + PR": "86.7 93.2 86.1",
}


@pytest.fixture(scope="module")
def ablated(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project after `conr ablate`, with two seeds and a thread for each of its processes."""
    workspace = Workspace.at(tmp_path_factory.mktemp("ablated"))
    write_params(workspace.root, SMALL)
    run_stages(workspace, tiny(SMALL), "prepare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "OMP_NUM_THREADS", "1")
        said = run(workspace.root, "conr", "ablate", "--seeds", "0,1", "--jobs", "2")
    assert (workspace.ablation / "table.md").read_text() in said
    return workspace


def test_the_table_has_the_rows_of_the_paper_in_its_order(ablated: Workspace) -> None:
    head, rule, *lines = (ablated.ablation / "table.md").read_text().splitlines()
    assert head == "| InC | LN | ConAff | OBD | PR | NMI | ACC | ARI | ACC median |"
    assert rule.count("---") == 9
    ticks = ["".join(cell.strip() or "-" for cell in line.split("|")[1:6]) for line in lines[:7]]
    assert ticks == ["✓----", "✓✓---", "✓-✓--", "✓✓-✓-", "✓✓-✓✓", "✓-✓✓-", "✓-✓✓✓"]
    assert lines[7] == ""
    assert lines[8].startswith("Percent; mean ± standard deviation of 2 seeds (0, 1). InC: instance concordance")


def test_the_runs_are_those_whose_means_the_table_shows(ablated: Workspace) -> None:
    runs = table(ablated.ablation / "runs.csv")
    assert [(run["row"], run["seed"]) for run in runs] == [(name, seed) for name in PAPER for seed in ("0", "1")]
    lines = (ablated.ablation / "table.md").read_text().splitlines()[2:9]
    for name, line in zip(PAPER, lines, strict=True):
        *scores, median = [cell.strip() for cell in line.split("|")[6:10]]
        for score, cell in zip(("nmi", "acc", "ari"), scores, strict=True):
            values = [100 * float(run[score]) for run in runs if run["row"] == name]
            mean, std = map(float, cell.split(" ± "))
            assert mean == pytest.approx(statistics.mean(values), abs=0.06)
            assert std == pytest.approx(statistics.stdev(values), abs=0.06)
        assert float(median) == pytest.approx(
            statistics.median(100 * float(run["acc"]) for run in runs if run["row"] == name), abs=0.06
        )


def test_rows_share_the_pretraining_of_a_seed(ablated: Workspace) -> None:
    runs = table(ablated.ablation / "runs.csv")
    for seed in ("0", "1"):
        assert len({run["pretrained_acc"] for run in runs if run["seed"] == seed}) == 1
    folders = [path.name.partition("-")[0] for path in ablated.experiments.iterdir()]
    assert sorted(folders) == ["finetune"] * 14 + ["pretrain"] * 2
    assert not list(ablated.experiments.rglob("state.pt")), "finished runs need no checkpoint"
    kept = list(ablated.experiments.glob("*/**/weights.safetensors"))
    assert len(kept) == 2, "a finished fine-tuning needs no weights"
    assert all(load_weights(path)[2] == 1 and path.parent.name == "pretrain" for path in kept)
    assert not (ablated.root / "artifacts/pretrain").exists(), "the project's own artifacts stay as they are"


def test_the_curves_are_drawn(ablated: Workspace) -> None:
    assert (ablated.ablation / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_not_repeated(ablated: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "executor", lambda *_: pytest.fail("something is trained"))
    before = (ablated.ablation / "table.md").read_text()
    runs = table(ablated.ablation / "runs.csv")
    assert ablate(ablated, tiny(SMALL), [1], rows=[7, 2], jobs=1).count("\n| ✓") == 2
    chosen = [run for run in runs if run["seed"] == "1" and run["row"] in (ROWS[1].name, ROWS[6].name)]
    assert table(ablated.ablation / "runs.csv") == chosen
    assert ablate(ablated, tiny(SMALL), [0, 1], jobs=1) + "\n" == before
    assert table(ablated.ablation / "runs.csv") == runs


def test_without_labels_it_is_refused(workspace: Workspace) -> None:
    workspace.store.unlink()
    run_stages(workspace, tiny({"prepare.labels": "none"}), "prepare")
    with pytest.raises(
        UserError, match=r"the store holds no labels, so the rows cannot be scored; set prepare\.labels"
    ):
        ablate(workspace, tiny(), [0])
    assert not workspace.experiments.exists()


def test_seeds_that_are_no_numbers_are_refused(project: Path) -> None:
    assert "'x' should be whole numbers such as 0,1,2" in refused(project, "ablate", "--seeds", "x")


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([-1], "seeds.0 = -1 should be greater than or equal to 0"),
        ([0, 0], "names a seed twice"),
        ([], "no seed is given"),
    ],
)
def test_impossible_seeds_are_refused_though_nothing_would_have_to_be_trained(
    ablated: Workspace, seeds: list[int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ablate(ablated, tiny(SMALL), seeds)


def made_up(dataset: str, count: int, image_size: int, **changes: Any) -> Manifest:
    """A manifest of which only the facts matter that decide what may stand beside it."""
    facts: dict[str, Any] = {"protocol": "all", "imbalance": 1.0, "train_count": count, "score_start": 0} | changes
    return Manifest(
        source=dataset,
        dataset=dataset,
        count=count,
        image_size=image_size,
        fit="crop",
        mean=[0.5] * 3,
        std=[0.2] * 3,
        checksum="0" * 64,
        files=[""] * count,
        labels=None,
        class_names=[],
        skipped=[],
        **facts,
    )


OUTCOMES = {
    experiment.name: [
        Outcome({}, {"nmi": 0.5 + number / 100, "acc": 0.6 + number / 100 + seed / 10, "ari": 0.4}, [], [])
        for seed in range(3)
    ]
    for number, experiment in enumerate(ROWS)
}


def test_the_paper_s_numbers_stand_beside_a_run_on_the_same_images() -> None:
    head, _, *lines = ablation.table(OUTCOMES, benchmark(made_up("cifar10", 60_000, 32), 10), [0, 1, 2])
    assert head.endswith("| ACC median | paper: NMI | ACC | ARI |")
    for number, (line, published) in enumerate(zip(lines, PAPER.values(), strict=False)):
        cells = [cell.strip() for cell in line.split("|")[6:-1]]
        own = [f"{50 + number:.1f} ± 0.0", f"{70 + number:.1f} ± 10.0", "40.0 ± 0.0", f"{70 + number:.1f}"]
        assert cells == own + published.split()


@pytest.mark.parametrize(
    ("manifest", "clusters"),
    [
        (made_up("digits", 1797, 8), 10),
        (made_up("cifar10", 59_999, 32), 10),
        (made_up("cifar10", 60_000, 16), 10),
        (made_up("cifar10", 60_000, 32, protocol="held-out", train_count=50_000, score_start=50_000), 10),
        (made_up("cifar10", 60_000, 32, imbalance=10.0), 10),
        (made_up("cifar10", 60_000, 32), 20),
    ],
    ids=["digits", "one image less", "smaller images", "held-out", "long tail", "more clusters"],
)
def test_the_paper_s_numbers_do_not_stand_beside_a_run_on_others(manifest: Manifest, clusters: int) -> None:
    lines = ablation.table(OUTCOMES, benchmark(manifest, clusters), [0, 1, 2])
    assert "paper" not in lines[0]
    assert {line.count("|") for line in lines[:9]} == {10}


@pytest.mark.parametrize(
    ("accuracies", "cell"),
    [([0.5], "50.0"), ([0.9, 0.92], "91.0 ± 1.4"), ([0.5, 0.6, 1.0], "70.0 ± 26.5")],
)
def test_means_are_in_percent_with_the_sample_standard_deviation(accuracies: list[float], cell: str) -> None:
    of_seeds = [Outcome({}, {"nmi": 0.5, "acc": acc, "ari": 0.4}, [], []) for acc in accuracies]
    outcomes = {experiment.name: of_seeds for experiment in ROWS}
    lines = ablation.table(outcomes, benchmark(made_up("digits", 1797, 8), 10), list(range(len(of_seeds))))
    assert [part.strip() for part in lines[2].split("|")][7] == cell


def test_one_seed_is_called_what_it_is() -> None:
    outcomes = {name: of_seeds[:1] for name, of_seeds in OUTCOMES.items()}
    *_, note = ablation.table(outcomes, benchmark(made_up("digits", 1797, 8), 10), [0])
    assert note.startswith("Percent; one seed (0); other seeds give other scores. ")
