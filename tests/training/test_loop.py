"""Both training stages on 64 tiny images: resuming, divergence, and what may not steer."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from recorder import Recorder
from small_networks import patterned, small_spec
from torch import Tensor

from conr import frameworks
from conr.errors import UserError
from conr.models.siamese import Siamese
from conr.observer import SILENT, Observer
from conr.parameters import FinetuneStage, Optimizer, PretrainStage, Views
from conr.parameters.groups import Boundary, Finetune, Framework, Pretrain
from conr.refinement.objective import finetune
from conr.training import checkpoints
from conr.training.checkpoints import Checkpoint
from conr.training.log import Row
from conr.training.pretraining import pretrain
from conr.training.recipe import Recipe

EPOCHS, BATCH = 4, 32
SCHEDULE = Optimizer(base_learning_rate=0.8, warmup_epochs=1, schedule_epochs=2 * EPOCHS, target_momentum=0.9)
SHARED: dict[str, Any] = {
    "device": "cpu",
    "precision": "float32",
    "optimizer": SCHEDULE,
    "views": Views(rotation=10.0),
}
STAGES = ["pretrain", "finetune"]

Labels = NDArray[np.int64]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads; and for networks this small, one is the fastest."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def saved_after_every_epoch() -> Iterator[None]:
    """However little time it took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "SAVING", math.inf)
        yield


@pytest.fixture(scope="module")
def labels() -> Labels:
    return np.random.default_rng(1).permutation(np.repeat(np.arange(4), 16))


@pytest.fixture(scope="module")
def images(labels: Labels) -> NDArray[np.uint8]:
    return patterned(labels)


def run(
    stage: str,
    images: NDArray[np.uint8],
    labels: Labels | None,
    checkpoint: Checkpoint,
    observer: Observer = SILENT,
    seed: int = 0,
    optimizer: Optimizer = SCHEDULE,
    training: bool = True,
    framework: str = "byol",
    bn_group: int = 0,
    relaxation: float = 1.0,
    **settings: Any,
) -> tuple[Siamese, list[Row]]:
    """A stage from the initial weights, or from the checkpoint; the settings are those of the stage itself."""
    model = small_spec(framework=framework, bn_group=bn_group).build(seed=0).train(training)
    shared = SHARED | {"seed": seed, "optimizer": optimizer, "framework": Framework(name=framework, queue=80)}
    sizes = {"epochs": EPOCHS, "batch_size": BATCH} | settings
    if stage == "pretrain":
        parameters = PretrainStage(**shared, pretrain=Pretrain(**sizes))
        return model, pretrain(model, images, labels, parameters, checkpoint, observer)
    clustering = {"clusters": 4, "k": 5, "k1": 5, "k2": 2, "fr": 0.5, "boundary": Boundary(relaxation=relaxation)}
    parameters = FinetuneStage(**shared, **clustering, finetune=Finetune(**sizes))
    return model, finetune(model, images, labels, parameters, EPOCHS, checkpoint, observer)


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


class KillInThirdEpoch(Observer):
    """The process dies after the first step of the third epoch."""

    def __init__(self) -> None:
        self.steps = 0

    def step_done(self, amount: int = 1, note: str = "") -> None:
        self.steps += amount
        if self.steps == 2 * 64 // BATCH + 1:
            raise Killed


@pytest.mark.parametrize("killed", ["after saving", "in mid-epoch"])
def test_resumed_run_ends_like_an_uninterrupted_one(
    killed: str,
    whole: tuple[str, Siamese, list[Row], Checkpoint],
    images: NDArray[np.uint8],
    labels: Labels,
    tmp_path: Path,
) -> None:
    stage, expected_model, expected_history, _ = whole
    if killed == "after saving":
        first, observer = KillAfterSave(tmp_path), SILENT
    else:
        first, observer = Checkpoint(tmp_path), KillInThirdEpoch()
    with pytest.raises(Killed):
        run(stage, images, labels, first, observer)
    saved = first.load()
    assert saved is not None
    assert len(saved["history"]) == 2
    torch.rand(7)  # the state of the global generator must not matter
    model, history = run(stage, images, labels, Checkpoint(tmp_path))
    assert_same_weights(model.state_dict(), expected_model.state_dict())
    assert without_seconds(history) == without_seconds(expected_history)


SCATTERED: dict[str, dict[str, Any]] = {
    "pretrain": {"scattering": 0.1, "prototypes": 4, "noise_std": 0.01},
    "finetune": {"scattering": 0.1, "boost": 1.0, "boost_neighbors": 5, "instance": 0.5},
}
# Each framework as it is used, and each stage with all that it can add to its loss; moco and groups have more to lose.
RESUMED: list[tuple[str, str, dict[str, Any]]] = [
    *[("pretrain", framework, {}) for framework in frameworks.names() if framework != "byol"],
    *[("finetune", framework, {"instance": 0.5}) for framework in frameworks.names()],
    *[(stage, framework, SCATTERED[stage]) for stage in STAGES for framework in ("byol", "moco")],
    *[(stage, "byol", {"bn_group": 16}) for stage in STAGES],
]


@pytest.mark.parametrize(
    ("stage", "framework", "settings"),
    RESUMED,
    ids=[" ".join((stage, framework, *settings)) for stage, framework, settings in RESUMED],
)
def test_resuming_is_exact_for_every_framework_and_with_every_addition_to_the_loss(
    stage: str, framework: str, settings: dict[str, Any], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    settings = settings | {"framework": framework, "epochs": 3}
    whole, interrupted = Checkpoint(tmp_path / "whole"), Checkpoint(tmp_path / "interrupted")
    expected_model, expected_history = run(stage, images, None, whole, **settings)
    with pytest.raises(Killed):
        run(stage, images, None, interrupted, KillInThirdEpoch(), **settings)
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
    enqueued = {"queue"} if framework == "moco" else set()
    clustered = {"centroids", "pseudo_labels"} if stage == "finetune" or "scattering" in settings else set()
    assert last["objective"].keys() == enqueued | clustered


def test_each_addition_changes_the_loss(
    whole: tuple[str, Siamese, list[Row], Checkpoint], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    stage, _, history, _ = whole
    for name in {"scattering", "noise_std", "boost", "instance"} & SCATTERED[stage].keys():
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
    return Recipe("pretrain", seed, Pretrain(epochs=EPOCHS, batch_size=BATCH), SCHEDULE, Views(), first_epoch)


def test_randomness_of_an_epoch_is_its_own_and_repeatable() -> None:
    seeds = {
        (seed, first, epoch, stream): recipe(seed, first).epoch_seed(epoch, stream)
        for seed in (0, 1)
        for first in (0, 3)
        for epoch in (0, 1, 2)
        for stream in (0, 1)
    }
    assert len(set(seeds.values())) == 24
    assert recipe(1, 3).epoch_seed(2, 1) == seeds[1, 3, 2, 1]


def test_another_seed_gives_another_run(
    whole: tuple[str, Siamese, list[Row], Checkpoint], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    stage, _, history, _ = whole
    _, other = run(stage, images, None, Checkpoint(tmp_path), seed=1, epochs=1)
    assert other[0]["loss"] != history[0]["loss"]


ALWAYS = {"epoch", "loss", "learning_rate", "feature_std", "seconds"}
LABELED = {"acc", "nmi", "ari", "class_acc"}
GROUP = {"candidate_fraction", "changed_assignments", "cluster_sizes", "size_entropy", "loss_group"}
COLUMNS = {"pretrain": ALWAYS | {"loss_instance"}, "finetune": ALWAYS | GROUP}


def test_log_with_labels_has_all_columns_and_finite_values(
    whole: tuple[str, Siamese, list[Row], Checkpoint],
) -> None:
    stage, _, history, _ = whole
    expected = COLUMNS[stage] | LABELED | ({"neighbor_purity"} if stage == "finetune" else set())
    first = 1 if stage == "pretrain" else EPOCHS + 1
    assert [row["epoch"] for row in history] == list(range(first, first + EPOCHS))
    for row in history:
        assert row.keys() == expected
        numbers = {name: value for name, value in row.items() if name != "cluster_sizes"}
        assert all(np.isfinite(value) for value in numbers.values())
        assert -2 <= row["loss"] <= 2
        assert all(
            0 <= row[name] <= 1 for name in expected & {"acc", "nmi", "class_acc", "size_entropy", "neighbor_purity"}
        )


@pytest.mark.parametrize("stage", STAGES)
def test_log_without_labels_has_no_scores(stage: str, images: NDArray[np.uint8], tmp_path: Path) -> None:
    _, history = run(stage, images, None, Checkpoint(tmp_path), epochs=1)
    assert history[0].keys() == COLUMNS[stage]


def test_every_parameter_of_all_three_networks_moves(
    whole: tuple[str, Siamese, list[Row], Checkpoint],
) -> None:
    _, model, _, _ = whole
    before = dict(small_spec().build(seed=0).named_parameters())
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
        progress, scale = [1.5, 2.5, 3.5], 1.0
        history = history[1:]
    else:
        progress, scale = [4.5, 5.5, 6.5, 7.5], 0.1
    expected = [scale * peak * (1 + np.cos(np.pi * (epoch - 1) / 7)) / 2 for epoch in progress]
    assert [row["learning_rate"] for row in history] == pytest.approx(expected)


@pytest.mark.parametrize(("relaxation", "expected"), [(0.5, [0.5, 0.75, 1.0, 1.0]), (1.0, [0.5, 0.625, 0.75, 0.875])])
def test_candidate_fraction_follows_the_relaxation(
    relaxation: float, expected: list[float], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    _, history = run("finetune", images, None, Checkpoint(tmp_path), relaxation=relaxation)
    assert [row["candidate_fraction"] for row in history] == expected


def test_purity_counts_known_labels_only(images: NDArray[np.uint8], labels: Labels, tmp_path: Path) -> None:
    same = np.where(labels == 0, 0, -1)
    _, history = run("finetune", images, same, Checkpoint(tmp_path / "one"), epochs=1)
    assert history[0]["neighbor_purity"] == 1.0
    single = np.where(np.arange(64) == 5, 0, -1)
    _, history = run("finetune", images, single, Checkpoint(tmp_path / "two"), epochs=1)
    assert history[0]["neighbor_purity"] is None


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
    message = rf"^{stage}: .* epoch 3 of 4\. .*optimizer\.base_learning_rate"
    with pytest.raises(UserError, match=message):
        run(stage, images, None, checkpoint, optimizer=wild)
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
    with pytest.raises(UserError, match=r"features .* not finite .*optimizer\.base_learning_rate"):
        run(stage, images, None, checkpoint, optimizer=wild, batch_size=64)
    assert checkpoint.load() is None


@pytest.mark.parametrize("stage", STAGES)
def test_the_observer_is_notified_of_every_step_and_of_every_epoch_once_it_is_saved(
    stage: str, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    class SavedRecorder(Recorder):
        saved: ClassVar[list[int]] = []

        def epoch_done(self, row: Mapping[str, Any]) -> None:
            super().epoch_done(row)
            self.saved.append(Checkpoint(tmp_path).epochs)

    first = SavedRecorder()
    _, history = run(stage, images, None, Checkpoint(tmp_path), first, epochs=2)
    assert first.tasks == [(stage, 4, 0)]
    assert first.steps == [(1, "")] * 4
    assert first.rows == history
    assert first.events == ["start", "step", "step", "epoch", "step", "step", "epoch", "end"]
    assert SavedRecorder.saved == [1, 2]
    second = Recorder()
    _, history = run(stage, images, None, Checkpoint(tmp_path), second, epochs=3)
    assert second.tasks == [(stage, 6, 4)]
    assert second.steps == [(1, "")] * 2
    assert second.rows == history[2:]
