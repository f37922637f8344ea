"""Group concordance in a training step: neighbors, candidates and both directions; and what may be added to it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import patterned, small_spec
from torch import Tensor

from conr.frameworks import framework_class
from conr.losses.prototypes import membership, prototype_scattering
from conr.models.siamese import Outputs
from conr.neighbors.boundary import boundary_ratio, candidates
from conr.neighbors.conaff import conaff, euclidean
from conr.neighbors.purity import purity_by_rank
from conr.neighbors.settings import ConAff
from conr.observer import SILENT
from conr.parameters import FinetuneStage, Optimizer
from conr.parameters.groups import Boundary, Finetune, Framework, Neighborhood
from conr.refinement.confidence import BoostTerm, group_compactness, high_confidence
from conr.refinement.group import GroupTerm, group_concordance
from conr.refinement.objective import Refinement, candidate_fraction, neighbor_search
from conr.training.compute import Compute
from conr.training.objective import Context
from conr.training.terms import Batch

SIZE, CLUSTERS = 16, 4
SHARED: dict[str, Any] = {"device": "cpu", "precision": "float32", "optimizer": Optimizer(warmup_epochs=1)}


def random_outputs(seed: int) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    pairs = [tuple((torch.randn(2, SIZE, 8, generator=generator) * 3).unbind()) for _ in range(3)]
    return Outputs(*pairs)  # type: ignore[arg-type]


def step(outputs: Outputs, seed: int = 0) -> Batch:
    """A step with random clusters."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLUSTERS, (SIZE,), generator=generator)
    centroids = F.normalize(torch.randn(CLUSTERS, 8, generator=generator), dim=1)
    return Batch(outputs, torch.randperm(40, generator=generator)[:SIZE], labels, centroids, SILENT)


def local_search(features: Tensor) -> Tensor:
    return euclidean(features, 4)


# The group term


def group_term(
    fraction_at: Callable[[int], float] = lambda epoch: 1.0, divisor: str = "candidates", labels: Tensor | None = None
) -> GroupTerm:
    return GroupTerm(local_search, SIZE, fraction_at, divisor, labels, torch.device("cpu"))


@pytest.mark.parametrize("divisor", ["candidates", "batch"])
@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_the_group_term_adds_both_directions_each_with_neighbors_and_candidates_of_its_target(
    fraction: float, divisor: str
) -> None:
    outputs = random_outputs(0)
    given, expected = step(outputs), torch.zeros(())
    for view in (0, 1):
        prediction, target = outputs.unit_predictions[view], outputs.unit_targets[1 - view]
        kept = candidates(boundary_ratio(target, given.pseudo_labels, given.centroids), fraction)
        expected = expected + group_concordance(prediction, target, local_search(target), kept, divisor)
    term = group_term(lambda epoch: fraction, divisor)
    term.start_epoch(0)
    torch.testing.assert_close(term(given), expected)
    assert term.row() == {"candidate_fraction": pytest.approx(np.ceil(fraction * SIZE) / SIZE)}


def test_the_group_term_logs_the_mean_purity_of_the_neighbors_of_both_directions() -> None:
    labels = torch.randint(-1, 3, (40,), generator=torch.Generator().manual_seed(1))
    term = group_term(labels=labels)
    term.start_epoch(0)
    purities = []
    for seed in (0, 1):
        given = step(random_outputs(seed), seed)
        term(given)
        for target in given.outputs.unit_targets:
            purity = purity_by_rank(labels[given.indices], local_search(target))[:, -1]
            purities += [value for value in purity.tolist() if value == value]
    assert term.row()["neighbor_purity"] == pytest.approx(np.mean(purities), abs=1e-5)


def test_the_group_term_counts_from_zero_in_every_epoch() -> None:
    term = group_term(lambda epoch: [0.25, 1.0][epoch])
    found = []
    for epoch in (0, 1):
        term.start_epoch(epoch)
        term(step(random_outputs(epoch)))
        found.append(term.row()["candidate_fraction"])
    assert found == [0.25, 1.0]


def test_purity_without_any_known_label_is_unknown() -> None:
    term = group_term(labels=torch.full((40,), -1))
    term.start_epoch(0)
    term(step(random_outputs(0)))
    assert term.row()["neighbor_purity"] is None


# The boost term


def test_the_boost_term_is_the_mean_of_both_directions_of_its_three_parts() -> None:
    outputs = random_outputs(0)
    framework, given = framework_class("byol")(Framework()), step(outputs)
    # Targets of which some are confident.
    targets = tuple(F.normalize(given.centroids[given.pseudo_labels] + 0.2 * noise, dim=1) for noise in outputs.targets)
    outputs = Outputs(outputs.projections, outputs.predictions, targets)  # type: ignore[arg-type]
    given = step(outputs)
    expected = framework.instance_loss(outputs)
    for view in (0, 1):
        target = outputs.unit_targets[1 - view]
        trusted = high_confidence(target, given.pseudo_labels, 3)
        assert 0 < trusted.sum() < SIZE
        members = membership(given.pseudo_labels, CLUSTERS, trusted)
        expected = expected + group_compactness(outputs.unit_predictions[view], target, members)
        expected = expected + prototype_scattering(outputs.unit_projections[view], target, members, 0.3)
    torch.testing.assert_close(BoostTerm(0.7, framework, CLUSTERS, 0.3, 3)(given), expected / 2)


# Both


def boost() -> BoostTerm:
    return BoostTerm(0.7, framework_class("byol")(Framework()), CLUSTERS, 0.3, 3)


def group() -> GroupTerm:
    term = group_term(lambda epoch: 0.5)
    term.start_epoch(0)
    return term


BOTH = pytest.mark.parametrize("make", [group, boost])


@BOTH
def test_lengths_of_features_do_not_matter(make: Callable[[], Any]) -> None:
    outputs, lengths = random_outputs(0), 2.0 ** torch.arange(-8, 8).unsqueeze(1)
    pairs = [tuple(lengths * features for features in pair) for pair in vars(random_outputs(0)).values()]
    torch.testing.assert_close(make()(step(Outputs(*pairs))), make()(step(outputs)))  # type: ignore[arg-type]


@BOTH
def test_bfloat16_features_are_compared_in_float32(make: Callable[[], Any]) -> None:
    half = [tuple(features.bfloat16() for features in pair) for pair in vars(random_outputs(0)).values()]
    exact = [tuple(features.float() for features in pair) for pair in half]
    loss = make()(step(Outputs(*half)))  # type: ignore[arg-type]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, make()(step(Outputs(*exact))))  # type: ignore[arg-type]


# The stage


@pytest.mark.parametrize(
    ("boundary", "expected"),
    [
        (Boundary(filter="relaxed"), [0.5, 0.625, 0.75, 0.875]),
        (Boundary(filter="relaxed", relaxation=0.5), [0.5, 0.75, 1.0, 1.0]),
        (Boundary(filter="relaxed", relaxation=0.01), [0.5, 1.0, 1.0, 1.0]),
        (Boundary(filter="fixed"), [0.5] * 4),
        (Boundary(filter="none"), [1.0] * 4),
    ],
)
def test_the_candidate_fraction_follows_the_filter(boundary: Boundary, expected: list[float]) -> None:
    parameters = FinetuneStage(**SHARED, fr=0.5, boundary=boundary, finetune=Finetune(epochs=4))
    assert [candidate_fraction(parameters, epoch) for epoch in range(4)] == expected


def test_neighbors_are_searched_as_the_parameters_say() -> None:
    features = F.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    how = Neighborhood(alpha=1.0, layers=1, symmetrize=False)
    parameters = FinetuneStage(**SHARED, k=5, k1=7, k2=3, neighborhood=how)
    expected = conaff(features, 5, ConAff(7, 3, alpha=1.0, layers=1, symmetrize=False))
    assert torch.equal(neighbor_search(parameters)(features), expected)
    parameters = FinetuneStage(**SHARED, k=5, k1=7, k2=3, neighborhood=Neighborhood(neighbors="local"))
    assert torch.equal(neighbor_search(parameters)(features), euclidean(features, 5))


def refinement(batch_size: int = 32, **settings: Any) -> Refinement:
    parameters = FinetuneStage(**SHARED, **settings, finetune=Finetune(epochs=4, batch_size=batch_size))
    images = torch.from_numpy(patterned(np.arange(64) % 4))
    return Refinement(
        Context(small_spec().build(seed=0), images, None, Compute.choose("cpu", "float32"), SILENT), parameters
    )


UNREAD = (torch.full((2, 8), torch.nan), torch.full((2, 8), torch.nan))  # the group term does not read projections


def test_candidates_of_a_batch_come_from_the_pseudo_labels_of_its_own_samples() -> None:
    objective = refinement(batch_size=4, clusters=2, k=1, k1=1, k2=1, fr=0.5)
    objective.load_state({"centroids": torch.eye(2, 8), "pseudo_labels": torch.arange(64) // 32})
    objective.start_epoch(0)
    # Two samples of either half: one lies on the centroid of its pseudo label, the other on the wrong one.
    indices = torch.tensor([3, 40, 9, 63])
    targets = torch.eye(2, 8)[torch.tensor([0, 1, 1, 0])]
    predictions = targets * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    loss = objective.loss(Outputs(UNREAD, (predictions, predictions), (targets, targets)), indices)
    assert loss.item() == pytest.approx(-2, abs=1e-6)


def test_clusters_keep_their_numbers_from_epoch_to_epoch() -> None:
    objective = refinement(clusters=4, k=1, k1=1, k2=1)
    objective.start_epoch(0)
    first = objective.state()
    order = torch.tensor([2, 0, 3, 1])
    objective.load_state({"centroids": first["centroids"][order], "pseudo_labels": first["pseudo_labels"]})
    features = torch.rand(8, 8)
    objective.loss(Outputs(UNREAD, (features, features), (features, features)), torch.arange(8))
    objective.end_epoch(0, steps=1)
    assert torch.equal(order[objective.state()["pseudo_labels"]], first["pseudo_labels"])
