"""A loss is the weighted sum of its terms, in the step and in the log; and the terms of both stages."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_networks import Unsaved, patterned, small_spec
from torch import Tensor

from conr.frameworks import framework_class
from conr.losses.prototypes import membership, prototype_scattering
from conr.models.siamese import Outputs, Pair
from conr.observer import SILENT, Observer
from conr.parameters import FinetuneStage, Optimizer, PretrainStage
from conr.parameters.groups import Finetune, Framework, Neighborhood, Pretrain
from conr.refinement.objective import finetune
from conr.training.compute import Compute
from conr.training.log import Row
from conr.training.objective import Context, Objective, PseudoLabels
from conr.training.pretraining import Pretraining, pretrain
from conr.training.terms import Batch, InstanceTerm, ScatteringTerm, Term

BATCH = 16
IMAGES = patterned(np.arange(48) % 4)


class LossTracer(Observer):
    """Writes down the losses of every step, an epoch a dictionary."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, list[float]]] = [{}]

    def traced(self, name: str, value: Any) -> None:
        if name.endswith(" loss"):
            self.epochs[-1].setdefault(name, []).append(value.item())

    def epoch_done(self, row: object) -> None:
        self.epochs.append({})


def context(images: NDArray[np.uint8] = IMAGES, observer: Observer = SILENT) -> Context:
    model = small_spec().build(seed=0)
    return Context(model, torch.from_numpy(images), None, Compute.choose("cpu", "float32"), observer)


def random_outputs(seed: int, size: int = BATCH) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    pairs = [tuple((torch.randn(2, size, 8, generator=generator) * 3).unbind()) for _ in range(3)]
    return Outputs(*pairs)  # type: ignore[arg-type]


def step(outputs: Outputs, seed: int = 0, clusters: int = 4) -> Batch:
    """A step with random clusters."""
    generator, size = torch.Generator().manual_seed(seed), len(outputs.targets[0])
    labels = torch.randint(0, clusters, (size,), generator=generator)
    centroids = torch.nn.functional.normalize(torch.randn(clusters, 8, generator=generator), dim=1)
    return Batch(outputs, torch.arange(size), labels, centroids, SILENT)


# The log


def trained(stage: str, observer: Observer = SILENT, neighbors: str = "conaff", **settings: Any) -> list[Row]:
    """The log of three epochs of a stage, of which the warm-up is one; the settings are those of the stage itself."""
    shared = {
        "device": "cpu",
        "precision": "float32",
        "optimizer": Optimizer(base_learning_rate=0.5, warmup_epochs=1, schedule_epochs=6),
        "framework": Framework(queue=20),
    }
    sizes, model = {"epochs": 3, "batch_size": BATCH} | settings, small_spec().build(seed=0)
    if stage == "pretrain":
        return pretrain(model, IMAGES, None, PretrainStage(**shared, pretrain=Pretrain(**sizes)), Unsaved(), observer)
    shared |= {"clusters": 4, "k": 3, "k1": 4, "k2": 2, "neighborhood": Neighborhood(neighbors=neighbors)}
    return finetune(model, IMAGES, None, FinetuneStage(**shared, finetune=Finetune(**sizes)), 3, Unsaved(), observer)


# Stage and settings, and the weights of the terms that are expected.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, float]]] = {
    "pretrain": ("pretrain", {}, {"instance": 1.0}),
    "pretrain with scattering": ("pretrain", {"scattering": 0.3, "prototypes": 3}, {"instance": 1, "scattering": 0.3}),
    "finetune": ("finetune", {}, {"group": 1.0}),
    "finetune with the instance loss": ("finetune", {"instance": 0.5}, {"group": 1.0, "instance": 0.5}),
    "finetune with scattering": ("finetune", {"scattering": 0.1}, {"group": 1.0, "scattering": 0.1}),
    "finetune with boost": ("finetune", {"boost": 0.7, "boost_neighbors": 3}, {"group": 1.0, "boost": 0.7}),
    "finetune with everything": (
        "finetune",
        {"instance": 0.5, "scattering": 0.1, "boost": 0.7},
        {"group": 1.0, "instance": 0.5, "scattering": 0.1, "boost": 0.7},
    ),
    "finetune without neighbors": ("finetune", {"neighbors": "none", "instance": 0.5}, {"instance": 1.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_log_has_a_column_a_term_whose_weighted_sum_is_the_loss(case: str) -> None:
    stage, settings, weights = CASES[case]
    tracer = LossTracer()
    history = trained(stage, tracer, **settings)
    for epoch, (row, traces) in enumerate(zip(history, tracer.epochs, strict=False)):
        active = set(weights) - ({"scattering"} if stage == "pretrain" and epoch < 1 else set())
        assert {name for name in row if name.startswith("loss_")} == {f"loss_{name}" for name in active}
        assert sum(weights[name] * row[f"loss_{name}"] for name in active) == pytest.approx(row["loss"], abs=1e-5)
        # Both are the means over the steps.
        assert traces.keys() - {"boosted instance loss"} == {"total loss", *(f"{name} loss" for name in active)}
        assert row["loss"] == pytest.approx(np.mean(traces["total loss"]), abs=1e-5)
        for name in active:
            assert len(traces[f"{name} loss"]) == 3
            assert row[f"loss_{name}"] == pytest.approx(np.mean(traces[f"{name} loss"]), abs=1e-5)


def test_scattering_in_pretraining_waits_for_the_end_of_the_warm_up() -> None:
    history = trained("pretrain", scattering=0.3, prototypes=3)
    assert ["loss_scattering" in row for row in history] == [False, True, True]
    plain = trained("pretrain")
    assert history[0]["loss"] == plain[0]["loss"]
    assert history[1]["loss"] != plain[1]["loss"]


# The objective


class Constant(Term):
    """A term whose value is known."""

    name = "constant"

    def __init__(self, value: float, weight: float, active: bool = True) -> None:
        super().__init__(weight)
        self.value, self.active = value, active

    def __call__(self, step: Batch) -> Tensor:
        return torch.tensor(self.value, requires_grad=True)


class Other(Constant):
    """Another one."""

    name = "other"

    def row(self) -> dict[str, float | None]:
        return {"of_other": 7.0}


def objective_of(*terms: Term) -> Objective:
    framework = framework_class("byol")(Framework())
    return Objective(context(), framework, terms, PseudoLabels(context(), 4, seed=0))


def test_a_loss_is_the_weighted_sum_of_its_active_terms_and_the_log_has_their_means() -> None:
    term = Constant(2.0, weight=0.5)
    objective = objective_of(term, Other(3.0, weight=4.0))
    objective.start_epoch(0)
    assert objective.loss(random_outputs(0), torch.arange(BATCH)).item() == 0.5 * 2 + 4 * 3
    term.value = 4.0
    assert objective.loss(random_outputs(0), torch.arange(BATCH)).item() == 0.5 * 4 + 4 * 3
    assert objective.end_epoch(0, steps=2) == {"loss_constant": 3.0, "loss_other": 3.0, "of_other": 7.0}
    objective.start_epoch(1)
    objective.loss(random_outputs(0), torch.arange(BATCH))
    assert objective.end_epoch(1, steps=1)["loss_constant"] == 4.0


def test_a_term_that_is_not_active_takes_no_part() -> None:
    objective = objective_of(Constant(2.0, weight=0.5), Other(3.0, weight=4.0, active=False))
    objective.start_epoch(0)
    assert objective.loss(random_outputs(0), torch.arange(BATCH)).item() == 1.0
    assert objective.end_epoch(0, steps=1) == {"loss_constant": 2.0}


def test_a_batch_is_enqueued_after_the_update() -> None:
    framework = framework_class("moco")(Framework(name="moco", queue=20))
    objective = Objective(context(), framework, [InstanceTerm(framework)], PseudoLabels(context(), 4, seed=0))
    first, second = random_outputs(0), random_outputs(1)
    objective.start_epoch(0)
    expected = framework_class("moco")(framework.settings).instance_loss(first)
    assert torch.equal(objective.loss(first, torch.arange(BATCH)), expected)
    assert torch.equal(objective.loss(first, torch.arange(BATCH)), expected)
    objective.after_update(first)
    queue = objective.state()["queue"]
    torch.testing.assert_close(queue[:BATCH], first.unit_targets[0])
    objective.after_update(second)
    assert objective.state()["queue"] is queue
    torch.testing.assert_close(queue[:BATCH], second.unit_targets[0])


def test_pretraining_pulls_each_view_towards_the_other() -> None:
    objective = Pretraining(context(), PretrainStage())
    one, other = torch.eye(2, 8)[[0, 0]], torch.eye(2, 8)[[1, 1]]
    unread = torch.full((2, 8), torch.nan)

    def loss(predictions: Pair, targets: Pair) -> float:
        return objective.loss(Outputs((unread, unread), predictions, targets), torch.tensor([5, 6])).item()

    assert loss((one, other), (other, one)) == pytest.approx(-2)
    assert loss((one, other), (one, other)) == pytest.approx(0)
    assert loss((one, other), (-one, one)) == pytest.approx(-1)
    assert loss((one, other), (other, -one)) == pytest.approx(0)


# Terms


@pytest.mark.parametrize("name", ["byol", "simsiam", "moco", "barlow-twins"])
def test_the_instance_term_is_the_frameworks_loss(name: str) -> None:
    framework = framework_class(name)(Framework(name=name, queue=20))
    expected = framework.instance_loss(random_outputs(0))
    assert torch.equal(InstanceTerm(framework, weight=0.3)(step(random_outputs(0))), expected)


def test_the_scattering_term_is_the_mean_of_both_directions() -> None:
    outputs = random_outputs(0)
    given = step(outputs)
    members = membership(given.pseudo_labels, 4)
    expected = sum(
        prototype_scattering(outputs.unit_projections[view], outputs.unit_targets[1 - view], members, 0.3)
        for view in (0, 1)
    )
    torch.testing.assert_close(ScatteringTerm(0.1, 4, 0.3)(given), expected / 2)


def test_the_scattering_term_is_active_from_its_first_epoch_on() -> None:
    term, active = ScatteringTerm(0.1, 4, 0.3, first_epoch=2), []
    for epoch in range(4):
        term.start_epoch(epoch)
        active.append(term.active)
    assert active == [False, False, True, True]


TERMS: dict[str, Callable[[], Term]] = {
    "instance": lambda: InstanceTerm(framework_class("byol")(Framework())),
    "instance of moco": lambda: InstanceTerm(framework_class("moco")(Framework(name="moco", queue=20))),
    "scattering": lambda: ScatteringTerm(0.1, 4, 0.3),
}


@pytest.mark.parametrize("name", TERMS)
def test_lengths_of_features_do_not_matter_to_a_term(name: str) -> None:
    outputs, lengths = random_outputs(0), torch.logspace(-2, 2, BATCH).unsqueeze(1)
    scaled = Outputs(*(tuple(lengths * features for features in pair) for pair in vars(random_outputs(0)).values()))  # type: ignore[arg-type]
    torch.testing.assert_close(TERMS[name]()(step(scaled)), TERMS[name]()(step(outputs)))


@pytest.mark.parametrize("name", TERMS)
def test_bfloat16_features_are_compared_in_float32(name: str) -> None:
    half = [tuple(features.bfloat16() for features in pair) for pair in vars(random_outputs(0)).values()]
    exact = [tuple(features.float() for features in pair) for pair in half]
    loss = TERMS[name]()(step(Outputs(*half)))  # type: ignore[arg-type]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, TERMS[name]()(step(Outputs(*exact))))  # type: ignore[arg-type]
