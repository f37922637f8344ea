"""What is said of several seeds: means and sample standard deviations over them, and of one seed that it is one."""

import statistics

import numpy as np
import pytest

from conr.evaluation.assignment import Assignment
from conr.evaluation.evaluate import Evaluation
from conr.evaluation.results import FINETUNED, PRETRAINED, Results
from conr.pipeline.report import seeds_note


def evaluation(**scores: float) -> Evaluation:
    """An evaluation of which only the scores matter."""
    whole, real = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    return Evaluation(np.zeros((2, 3), dtype=np.float32), whole, Assignment(whole, real, whole, real), scores)


BEFORE = evaluation(acc=0.4, nmi=0.3, silhouette=0.2, size_entropy=0.9, feature_std=0.5, inertia=10.0)
ONE = Results(
    BEFORE, {7: evaluation(acc=0.61239, nmi=0.5, silhouette=0.1, size_entropy=1.0, feature_std=0.4, inertia=4.0)}
)
THREE = Results(
    BEFORE,
    {
        5: evaluation(acc=0.5, nmi=0.25, silhouette=0.25, size_entropy=0.75, feature_std=0.5, inertia=8.0),
        0: evaluation(acc=0.6, nmi=0.75, silhouette=0.5, size_entropy=0.5, feature_std=0.25, inertia=6.0),
        9: evaluation(acc=1.0, nmi=0.5, silhouette=0.75, size_entropy=1.0, feature_std=0.75, inertia=1.0),
    },
)
MEANS = {"acc": 0.7, "nmi": 0.5, "silhouette": 0.5, "size_entropy": 0.75, "feature_std": 0.5, "inertia": 5.0}
STDS = {"nmi": 0.25, "silhouette": 0.25, "size_entropy": 0.25, "feature_std": 0.25}
STDS |= {"acc": statistics.stdev([0.5, 0.6, 1.0]), "inertia": statistics.stdev([8, 6, 1])}


def test_means_and_sample_standard_deviations_are_taken_score_by_score() -> None:
    summary = THREE.summary()
    assert {key: value.mean for key, value in summary.items()} == pytest.approx(MEANS)
    assert {key: value.std for key, value in summary.items()} == pytest.approx(STDS)
    assert {value.count for value in summary.values()} == {3}


def test_one_seed_is_its_own_mean_and_has_no_standard_deviation() -> None:
    summary = ONE.summary()
    assert {key: value.mean for key, value in summary.items()} == ONE.first.scores
    assert {value.std for value in summary.values()} == {None}


def test_the_first_seed_is_the_first_that_was_named_not_the_smallest() -> None:
    assert THREE.first is THREE.finetuned[5]


def test_a_score_that_one_seed_lacks_has_no_mean() -> None:
    """Silhouette is not defined if all samples fall into one cluster."""
    results = Results(BEFORE, {0: evaluation(acc=0.5, silhouette=0.1), 1: evaluation(acc=0.7)})
    assert list(results.summary()) == ["acc"]


def test_metrics_of_one_seed_have_no_standard_deviation() -> None:
    metrics = ONE.metrics(1797)
    assert metrics == {
        "images": 1797,
        "acc": 0.6124,
        "nmi": 0.5,
        "silhouette": 0.1,
        "size_entropy": 1.0,
        "feature_std": 0.4,
        "inertia": 4.0,
        "pretrained": BEFORE.scores,
        "gain": {"acc": 0.2124, "nmi": 0.2, "silhouette": -0.1, "size_entropy": 0.1},
        "seeds": 1,
    }


def test_metrics_of_several_seeds_have_the_means_at_the_top_and_all_seeds_below() -> None:
    metrics = THREE.metrics(100)
    assert {name: metrics[name] for name in MEANS} == pytest.approx(MEANS, abs=5e-5)
    assert metrics["std"] == pytest.approx(STDS, abs=5e-5)
    assert metrics["seed"] == {str(seed): result.scores for seed, result in THREE.finetuned.items()}
    assert metrics["gain"] == pytest.approx({"acc": 0.3, "nmi": 0.2, "silhouette": 0.3, "size_entropy": -0.15})
    assert (metrics["images"], metrics["seeds"], metrics["pretrained"]) == (100, 3, BEFORE.scores)


def test_gain_leaves_out_what_is_not_known_on_both_sides() -> None:
    results = Results(
        evaluation(size_entropy=0.5, feature_std=1.0),
        {0: evaluation(size_entropy=0.75, silhouette=0.1, feature_std=0.5)},
    )
    assert results.metrics(1)["gain"] == {"size_entropy": 0.25}


def shown(results: Results) -> dict[str, dict[str, str]]:
    """The table of scores, with three decimals."""
    return {name: {key: f"{value:.3f}" for key, value in row.items()} for name, row in results.rows().items()}


def test_the_table_of_one_seed_has_two_rows() -> None:
    assert shown(ONE) == {
        PRETRAINED: {
            "acc": "0.400",
            "nmi": "0.300",
            "silhouette": "0.200",
            "size_entropy": "0.900",
            "feature_std": "0.500",
            "inertia": "10.000",
        },
        FINETUNED: {
            "acc": "0.612",
            "nmi": "0.500",
            "silhouette": "0.100",
            "size_entropy": "1.000",
            "feature_std": "0.400",
            "inertia": "4.000",
        },
    }


def test_the_table_of_several_seeds_has_a_row_for_each_and_their_mean() -> None:
    rows = shown(THREE)
    assert list(rows) == [PRETRAINED, "seed 5", "seed 0", "seed 9", f"{FINETUNED}, mean"]
    assert [row["acc"] for row in rows.values()] == ["0.400", "0.500", "0.600", "1.000", "0.700 ± 0.265"]
    assert rows[f"{FINETUNED}, mean"]["size_entropy"] == "0.750 ± 0.250"


def test_the_note_says_how_many_seeds_and_which() -> None:
    assert seeds_note(ONE).startswith("One seed (7): ")
    assert seeds_note(THREE).startswith("Mean ± standard deviation of 3 seeds of fine-tuning and k-means (5, 0, 9)")
