"""Both training stages on 64 tiny images: resuming, divergence, and what may not steer."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from conr import hosts
from conr.errors import UserError
from conr.hosts import host_class
from conr.networks import Outputs, Pair, Siamese
from conr.parameters import Boundary, Finetune, FinetuneStage, Host, Optimiser, Pretrain, PretrainStage, Views
from conr.progress import Advance, Progress, silent
from conr.training import checkpoints
from conr.training.checkpoints import Checkpoint
from conr.training.compute import Compute
from conr.training.group import GroupConcordance, finetune
from conr.training.instance import InstanceConcordance, pretrain
from conr.training.loop import Recipe, Row, epoch_generator
from conr.training.model import build

EPOCHS, BATCH = 4, 32
DESCRIPTION: dict[str, Any] = {
    "architecture": "resnet18",
    "width": 4,
    "stem": "cifar",
    "hidden": 16,
    "dimension": 8,
    "bn_group": 0,
    "predictor_deviation": 0.01,
    "framework": "byol",
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
}
SCHEDULE = Optimiser(base_learning_rate=0.8, warmup_epochs=1, schedule_epochs=2 * EPOCHS, target_momentum=0.9)
SHARED: dict[str, Any] = {
    "device": "cpu",
    "precision": "float32",
    "optimiser": SCHEDULE,
    "views": Views(rotation=10.0),
}
STAGES = ["pretrain", "finetune"]

Labels = NDArray[np.int64]
Stage = Callable[..., tuple[Siamese, list[Row]]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads; and for networks this small, one is the fastest."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def saved_after_every_epoch() -> Iterator[None]:
    """However quick it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "SAVING", math.inf)
        yield


@pytest.fixture(scope="module")
def labels() -> Labels:
    return np.random.default_rng(1).permutation(np.repeat(np.arange(4), 16))


@pytest.fixture(scope="module")
def images(labels: Labels) -> NDArray[np.uint8]:
    """Noise about one random pattern for each label."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 256, (4, 8, 8, 3))
    noisy = patterns[labels] + random.normal(scale=20, size=(64, 8, 8, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def new_model(**changes: Any) -> Siamese:
    torch.manual_seed(0)
    return build(DESCRIPTION | changes)


def run(
    stage: str,
    images: NDArray[np.uint8],
    labels: Labels | None,
    checkpoint: Checkpoint,
    progress: Progress = silent,
    seed: int = 0,
    optimiser: Optimiser = SCHEDULE,
    training: bool = True,
    framework: str = "byol",
    bn_group: int = 0,
    relaxation: float = 1.0,
    **settings: Any,
) -> tuple[Siamese, list[Row]]:
    """A stage from the initial weights, or from the checkpoint; the settings are those of the stage itself."""
    model = new_model(framework=framework, bn_group=bn_group).train(training)
    shared = SHARED | {"seed": seed, "optimiser": optimiser, "host": Host(framework=framework, queue=80)}
    sizes = {"epochs": EPOCHS, "batch_size": BATCH} | settings
    if stage == "pretrain":
        parameters = PretrainStage(**shared, pretrain=Pretrain(**sizes))
        return model, pretrain(model, images, labels, parameters, checkpoint, progress)
    clustering = {"clusters": 4, "k": 5, "k1": 5, "k2": 2, "fr": 0.5, "boundary": Boundary(relaxation=relaxation)}
    parameters = FinetuneStage(**shared, **clustering, finetune=Finetune(**sizes))
    return model, finetune(model, images, labels, parameters, EPOCHS, checkpoint, progress)


@pytest.fixture(scope="module", params=STAGES)
def whole(
    request: pytest.FixtureRequest,
    images: NDArray[np.uint8],
    labels: Labels,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Siamese, list[Row], Checkpoint]:
    """An uninterrupted run of each stage, with labels for its log, and the checkpoint that it leaves."""
    checkpoint = Checkpoint(tmp_path_factory.mktemp("whole") / request.param)
    return request.param, *run(request.param, images, labels, checkpoint), checkpoint


def assert_same_weights(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def without_seconds(history: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


class Killed(BaseException):
    """Stands for the signal that ends a run."""


class KillAfterSave(Checkpoint):
    """Saves like any checkpoint; the process dies right after the second time."""

    saves = 0

    def save(self, state: Mapping[str, Any]) -> None:
        super().save(state)
        self.saves += 1
        if self.saves == 2:
            raise Killed


@contextmanager
def killed_in_the_third_epoch(description: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A `Progress` that dies after the first step of the third epoch."""
    steps = 0

    def advance(amount: int, note: str = "") -> None:
        nonlocal steps
        steps += amount
        if steps == 2 * 64 // BATCH + 1:
            raise Killed

    yield advance


@pytest.mark.parametrize("moment", ["after saving", "in mid-epoch"])
def test_resumed_run_ends_like_an_uninterrupted_one(
    moment: str,
    whole: tuple[str, Siamese, list[Row], Checkpoint],
    images: NDArray[np.uint8],
    labels: Labels,
    tmp_path: Path,
) -> None:
    stage, expected_model, expected_history, _ = whole
    if moment == "after saving":
        first, progress = KillAfterSave(tmp_path), silent
    else:
        first, progress = Checkpoint(tmp_path), killed_in_the_third_epoch
    with pytest.raises(Killed):
        run(stage, images, labels, first, progress)
    saved = first.load()
    assert saved is not None
    assert len(saved["history"]) == 2
    torch.rand(7)  # the state of the global generator must not matter
    model, history = run(stage, images, labels, Checkpoint(tmp_path))
    assert_same_weights(model.state_dict(), expected_model.state_dict())
    assert without_seconds(history) == without_seconds(expected_history)


SCATTERED: dict[str, dict[str, Any]] = {
    "pretrain": {"scattering": 0.1, "prototypes": 4, "noise": 0.01},
    "finetune": {"scattering": 0.1, "boost": 1.0, "boost_neighbours": 5, "instance": 0.5},
}
# Each host as it is used, and each stage with all that it can add to its loss; moco and groups have more to lose.
RESUMED: list[tuple[str, str, dict[str, Any]]] = [
    *[("pretrain", framework, {}) for framework in hosts.names() if framework != "byol"],
    *[("finetune", framework, {"instance": 0.5}) for framework in hosts.names()],
    *[(stage, framework, SCATTERED[stage]) for stage in STAGES for framework in ("byol", "moco")],
    *[(stage, "byol", {"bn_group": 16}) for stage in STAGES],
]


@pytest.mark.parametrize(
    ("stage", "framework", "settings"),
    RESUMED,
    ids=[" ".join((stage, framework, *settings)) for stage, framework, settings in RESUMED],
)
def test_resuming_is_exact_for_every_host_and_with_every_addition_to_the_loss(
    stage: str, framework: str, settings: dict[str, Any], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    settings = settings | {"framework": framework, "epochs": 3}
    whole, interrupted = Checkpoint(tmp_path / "whole"), Checkpoint(tmp_path / "interrupted")
    expected_model, expected_history = run(stage, images, None, whole, **settings)
    with pytest.raises(Killed):
        run(stage, images, None, interrupted, killed_in_the_third_epoch, **settings)
    saved = interrupted.load()
    assert saved is not None
    assert len(saved["history"]) == 2
    torch.rand(7)  # the state of the global generator must not matter
    model, history = run(stage, images, None, interrupted, **settings)
    assert_same_weights(model.state_dict(), expected_model.state_dict())
    assert without_seconds(history) == without_seconds(expected_history)
    last, expected = interrupted.load(), whole.load()
    assert last is not None
    assert expected is not None
    assert_same_weights(last["objective"], expected["objective"])
    remembered = {"queue"} if framework == "moco" else set()
    clustered = {"centroids", "pseudo_labels"} if stage == "finetune" or "scattering" in settings else set()
    assert last["objective"].keys() == remembered | clustered


def test_each_addition_changes_the_loss(
    whole: tuple[str, Siamese, list[Row], Checkpoint], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    stage, _, history, _ = whole
    for name in {"scattering", "noise", "boost", "instance"} & SCATTERED[stage].keys():
        _, other = run(stage, images, None, Checkpoint(tmp_path / name), epochs=2, **{name: SCATTERED[stage][name]})
        assert other[1]["loss"] != history[1]["loss"]


def test_finished_run_is_only_read_from_its_checkpoint(
    whole: tuple[str, Siamese, list[Row], Checkpoint], images: NDArray[np.uint8], labels: Labels
) -> None:
    stage, model, history, checkpoint = whole
    again, same_history = run(stage, images, labels, checkpoint)
    assert_same_weights(again.state_dict(), model.state_dict())
    assert same_history == history


def test_labels_do_not_steer(
    whole: tuple[str, Siamese, list[Row], Checkpoint], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    stage, with_labels, history, _ = whole
    without_labels, plain_history = run(stage, images, None, Checkpoint(tmp_path))
    assert_same_weights(without_labels.state_dict(), with_labels.state_dict())
    assert [row["loss"] for row in plain_history] == [row["loss"] for row in history]


def test_a_model_in_evaluation_mode_is_trained_all_the_same(
    whole: tuple[str, Siamese, list[Row], Checkpoint], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    stage, _, history, _ = whole
    _, other = run(stage, images, None, Checkpoint(tmp_path), epochs=1, training=False)
    assert other[0]["loss"] == history[0]["loss"]


def recipe(seed: int, first_epoch: int) -> Recipe:
    return Recipe("pretrain", seed, EPOCHS, first_epoch, BATCH, 0.5, 1.0, 1.0, SCHEDULE, Views())


def test_randomness_of_an_epoch_is_its_own_and_repeatable() -> None:
    cpu = torch.device("cpu")
    drawn = {
        (seed, first, epoch): torch.rand(4, generator=epoch_generator(recipe(seed, first), epoch, cpu)).tolist()
        for seed in (0, 1)
        for first in (0, 3)
        for epoch in (0, 1, 2)
    }
    assert len({tuple(values) for values in drawn.values()}) == 12
    again = torch.rand(4, generator=epoch_generator(recipe(1, 3), 2, cpu)).tolist()
    assert again == drawn[1, 3, 2]


def test_another_seed_gives_another_run(
    whole: tuple[str, Siamese, list[Row], Checkpoint], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    stage, _, history, _ = whole
    _, other = run(stage, images, None, Checkpoint(tmp_path), seed=1, epochs=1)
    assert other[0]["loss"] != history[0]["loss"]


ALWAYS = {"epoch", "loss", "learning_rate", "spread", "seconds"}
SCORES = {"acc", "nmi", "ari", "class_acc"}
GROUP = {"kept_fraction", "cluster_sizes", "balance"}


def test_log_with_labels_has_all_columns_and_finite_values(
    whole: tuple[str, Siamese, list[Row], Checkpoint],
) -> None:
    stage, _, history, _ = whole
    expected = ALWAYS | SCORES | (GROUP | {"neighbour_purity"} if stage == "finetune" else set())
    first = 1 if stage == "pretrain" else EPOCHS + 1
    assert [row["epoch"] for row in history] == list(range(first, first + EPOCHS))
    for row in history:
        assert row.keys() == expected
        numbers = {name: value for name, value in row.items() if name != "cluster_sizes"}
        assert all(np.isfinite(value) for value in numbers.values())
        assert -2 <= row["loss"] <= 2
        assert all(
            0 <= row[name] <= 1 for name in expected & {"acc", "nmi", "class_acc", "balance", "neighbour_purity"}
        )


@pytest.mark.parametrize("stage", STAGES)
def test_log_without_labels_has_no_scores(stage: str, images: NDArray[np.uint8], tmp_path: Path) -> None:
    _, history = run(stage, images, None, Checkpoint(tmp_path), epochs=1)
    assert history[0].keys() == ALWAYS | (GROUP if stage == "finetune" else set())


def test_every_parameter_of_all_three_networks_moves(
    whole: tuple[str, Siamese, list[Row], Checkpoint],
) -> None:
    _, model, _, _ = whole
    before = dict(new_model().named_parameters())
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert still == []


def test_pretraining_loss_falls(images: NDArray[np.uint8], whole: tuple[str, Siamese, list[Row], Checkpoint]) -> None:
    _, _, history, _ = whole
    assert history[-1]["loss"] < history[0]["loss"]


def test_stages_share_one_learning_rate_curve(whole: tuple[str, Siamese, list[Row], Checkpoint]) -> None:
    stage, _, history, _ = whole
    peak = 0.8 * BATCH / 256
    # The last of two steps of an epoch comes half-way through it; the warm-up is one epoch of eight.
    if stage == "pretrain":
        assert history[0]["learning_rate"] == pytest.approx(peak / 2)
        moments, rate = [1.5, 2.5, 3.5], peak
        history = history[1:]
    else:
        moments, rate = [4.5, 5.5, 6.5, 7.5], peak * 0.1
    expected = [rate * (1 + np.cos(np.pi * (moment - 1) / 7)) / 2 for moment in moments]
    assert [row["learning_rate"] for row in history] == pytest.approx(expected)


@pytest.mark.parametrize(("relaxation", "expected"), [(0.5, [0.5, 0.75, 1.0, 1.0]), (1.0, [0.5, 0.625, 0.75, 0.875])])
def test_kept_fraction_follows_the_relaxation(
    relaxation: float, expected: list[float], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    _, history = run("finetune", images, None, Checkpoint(tmp_path), relaxation=relaxation)
    assert [row["kept_fraction"] for row in history] == expected


def test_pretraining_pulls_each_view_towards_the_other(images: NDArray[np.uint8]) -> None:
    compute = Compute.choose("cpu", "float32")
    parameters = PretrainStage(**SHARED, pretrain=Pretrain(epochs=EPOCHS, batch_size=BATCH))
    objective = InstanceConcordance(new_model(), torch.from_numpy(images), compute, parameters, byol(), None)
    one, other = torch.eye(2, 8)[[0, 0]], torch.eye(2, 8)[[1, 1]]
    indices = torch.tensor([5, 6])

    def loss(predictions: Pair, targets: Pair) -> float:
        return objective.loss(Outputs(NO_PROJECTIONS, predictions, targets), indices).item()

    assert loss((one, other), (other, one)) == pytest.approx(-2)
    assert loss((one, other), (one, other)) == pytest.approx(0)
    assert loss((one, other), (-one, one)) == pytest.approx(-1)
    assert loss((one, other), (other, -one)) == pytest.approx(0)


NO_PROJECTIONS = (torch.full((2, 8), torch.nan), torch.full((2, 8), torch.nan))  # the plain losses do not read them


def byol() -> hosts.Host:
    return host_class("byol")(Host())


def group_objective(images: NDArray[np.uint8], **settings: Any) -> GroupConcordance:
    parameters = FinetuneStage(**SHARED, **settings, finetune=Finetune(epochs=EPOCHS, batch_size=BATCH))
    compute = Compute.choose("cpu", "float32")
    return GroupConcordance(new_model(), torch.from_numpy(images), compute, parameters, byol(), None)


def test_candidates_of_a_batch_come_from_the_pseudo_labels_of_its_own_samples(images: NDArray[np.uint8]) -> None:
    objective = group_objective(images, clusters=2, k=1, k1=1, k2=1, fr=0.5)
    objective.load_state({"centroids": torch.eye(2, 8), "pseudo_labels": torch.arange(64) // 32})
    objective.start_epoch(0)
    # Two samples of either half: one lies on the centroid of its pseudo label, the other on the wrong one.
    indices = torch.tensor([3, 40, 9, 63])
    targets = torch.eye(2, 8)[torch.tensor([0, 1, 1, 0])]
    predictions = targets * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    loss = objective.loss(Outputs(NO_PROJECTIONS, (predictions, predictions), (targets, targets)), indices)
    assert loss.item() == pytest.approx(-2, abs=1e-6)


def test_clusters_keep_their_numbers_from_epoch_to_epoch(images: NDArray[np.uint8]) -> None:
    objective = group_objective(images, clusters=4, k=1, k1=1, k2=1)
    objective.start_epoch(0)
    first = objective.state()
    order = torch.tensor([2, 0, 3, 1])
    objective.load_state({"centroids": first["centroids"][order], "pseudo_labels": first["pseudo_labels"]})
    features = torch.rand(8, 8)
    objective.loss(Outputs(NO_PROJECTIONS, (features, features), (features, features)), torch.arange(8))
    objective.end_epoch(0)
    assert torch.equal(order[objective.state()["pseudo_labels"]], first["pseudo_labels"])


def test_purity_counts_known_labels_only(images: NDArray[np.uint8], labels: Labels, tmp_path: Path) -> None:
    same = np.where(labels == 0, 0, -1)
    _, history = run("finetune", images, same, Checkpoint(tmp_path / "one"), epochs=1)
    assert history[0]["neighbour_purity"] == 1.0
    single = np.where(np.arange(64) == 5, 0, -1)
    _, history = run("finetune", images, single, Checkpoint(tmp_path / "two"), epochs=1)
    assert history[0]["neighbour_purity"] is None


def test_the_last_epoch_is_saved_although_the_one_before_was_just_now(
    images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SAVING", 1e-9)

    class Counted(Checkpoint):
        epochs: ClassVar[list[int]] = []

        def save(self, state: Mapping[str, Any]) -> None:
            self.epochs.append(len(state["history"]))
            super().save(state)

    run("pretrain", images, None, Counted(tmp_path))
    assert Counted.epochs == [1, EPOCHS]


@pytest.mark.parametrize("stage", STAGES)
def test_divergence_names_stage_and_epoch_and_keeps_the_last_good_state(
    stage: str, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    checkpoint = Checkpoint(tmp_path)
    good, history = run(stage, images, None, checkpoint, epochs=2)
    wild = SCHEDULE.model_copy(update={"base_learning_rate": 1e30})
    message = (
        f"^{stage}: the loss is not a finite number in epoch 3 of 4\\. .*; with changed values training starts anew$"
    )
    with pytest.raises(UserError, match=message):
        run(stage, images, None, checkpoint, optimiser=wild)
    state = checkpoint.load()
    assert state is not None
    assert_same_weights(state["model"], good.state_dict())
    assert state["history"] == history


@pytest.mark.parametrize("stage", STAGES)
def test_an_epoch_whose_last_step_breaks_the_features_is_not_kept(
    stage: str, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    # With one step an epoch the loss is taken before the first update, and is finite.
    checkpoint = Checkpoint(tmp_path)
    wild = SCHEDULE.model_copy(update={"base_learning_rate": 1e30, "warmup_epochs": 0, "target_momentum": 0.0})
    with pytest.raises(UserError, match=r"^the features of the network are not finite numbers"):
        run(stage, images, None, checkpoint, optimiser=wild, batch_size=64)
    assert checkpoint.load() is None
