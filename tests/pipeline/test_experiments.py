"""Rows of parameters times seeds: they share what they can, what is finished is kept, and what was stopped resumes."""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from in_this_process import InThisProcess
from project import FINISHED, run_stages, tiny

from conr.errors import UserError
from conr.observer import SILENT, Observer
from conr.parameters import Parameters
from conr.pipeline import executors, experiments, trainings
from conr.pipeline.ablation import ROWS
from conr.pipeline.experiments import Experiment, Outcome, run_experiments
from conr.pipeline.trainings import Training
from conr.pipeline.workspace import Workspace
from conr.training.checkpoints import Checkpoint
from conr.training.log import read_log, write_log

# 492 digits and one epoch: enough that runs differ.
SMALL: dict[str, Any] = {
    "prepare.imbalance": 60.0,
    "pretrain.epochs": 1,
    "finetune.epochs": 1,
    "finetune.batch_size": 128,
    "evaluate.n_init": 2,
}
ENDLESS = {"pretrain.epochs": 900_000, "optimizer.schedule_epochs": 1_000_000}
PLAIN = Experiment("plain", {})
PARAMETERS = tiny(SMALL)


@pytest.fixture(scope="module")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A few packed digits. Not to be written to."""
    workspace = Workspace.at(tmp_path_factory.mktemp("few"))
    run_stages(workspace, PARAMETERS, "prepare")
    return workspace


@pytest.fixture
def own(few_images: Workspace, workspace: Workspace) -> Workspace:
    """The same images, and nothing has run."""
    workspace.borrow(few_images, "artifacts/store")
    return workspace


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages of the trainings that have been started; they run in this process."""
    stages: list[str] = []

    class Watched(InThisProcess):
        def submit(self, function: Callable[..., None], training: Training, threads: int) -> Future[None]:
            stages.append(training.stage)
            return super().submit(function, training, threads)

    monkeypatch.setattr(executors, "Workers", Watched)
    return stages


def outcome_of(workspace: Workspace, parameters: Parameters, experiment: Experiment = PLAIN, seed: int = 0) -> Outcome:
    """The outcome of one row with one seed."""
    (outcome,) = run_experiments(workspace, parameters, [experiment], [seed], 1, SILENT)[experiment.name]
    return outcome


def test_an_outcome_is_what_the_stages_give(finished: Workspace, workspace: Workspace, started: list[str]) -> None:
    outcome = outcome_of(workspace, tiny(), seed=3)
    after = json.loads(finished.metrics.read_text())
    curves = [(outcome.curve, finished.finetuned(3).log), (outcome.pretraining, finished.pretrained.log)]
    for curve, log in curves:
        expected = read_log(log)
        for row in (*curve, *expected):
            row.pop("seconds")
        assert curve == expected
    assert FINISHED["seed"] == 3
    for found, scores in ((outcome.pretrained, after["pretrained"]), (outcome.finetuned, after["seed"]["3"])):
        assert found["feature_std"] == pytest.approx(scores["feature_std"], abs=2e-4)
        # The features differ by 1e-5 from onnxruntime's, and k-means may end elsewhere: they have no clusters yet.
        assert found["inertia"] == pytest.approx(scores["inertia"], rel=1e-3)
        for score in ("acc", "nmi", "ari", "silhouette"):
            assert found[score] == pytest.approx(scores[score], abs=0.02), score
    assert outcome.pretrained != outcome.finetuned
    (kept,) = workspace.experiments.glob("pretrain-*/artifacts/pretrain/weights.safetensors")
    assert kept.read_bytes() == finished.pretrained.weights.read_bytes()


def test_only_what_depends_on_a_changed_parameter_runs_again(own: Workspace, started: list[str]) -> None:
    rows = [Experiment("all", {"boundary.filter": "none"}), Experiment("some", {"boundary.filter": "fixed"})]
    first = run_experiments(own, PARAMETERS, rows, [0], 1, SILENT)
    assert started == ["pretrain", "finetune", "finetune"]
    assert first["all"][0].pretrained == first["some"][0].pretrained
    assert first["all"][0].finetuned != first["some"][0].finetuned

    started.clear()
    rows.append(Experiment("few", {"boundary.filter": "fixed", "fr": 0.3}))
    again = run_experiments(own, PARAMETERS, rows, [0], 1, SILENT)
    assert started == ["finetune"]
    assert {name: again[name] for name in first} == first
    started.clear()
    run_experiments(own, PARAMETERS, [Experiment("others", {"pretrain.crop_scale": 0.9})], [0], 1, SILENT)
    assert started == ["pretrain", "finetune"]
    assert len(list(own.experiments.iterdir())) == 2 + 4


def test_scores_of_other_labels_are_not_taken_from_the_cache(
    few_images: Workspace, own: Workspace, started: list[str]
) -> None:
    before = outcome_of(own, PARAMETERS)
    own.store.unlink()
    own.store.mkdir()
    (own.store / "images.npy").symlink_to(few_images.store / "images.npy")
    manifest = json.loads((few_images.store / "manifest.json").read_text())
    manifest["labels"].reverse()
    (own.store / "manifest.json").write_text(json.dumps(manifest))
    after = outcome_of(own, PARAMETERS)
    assert after.finetuned["acc"] != before.finetuned["acc"]


@pytest.mark.parametrize(
    ("rows", "seeds", "changes", "message"),
    [
        ([PLAIN, Experiment("too many", {"k2": 21})], [0, 1], {}, "k2 = 21 is larger than k1 = 20"),
        ([PLAIN, Experiment("too large", {"fr": 2.0})], [0], {}, r"fr = 2\.0 should be less than or equal to 1"),
        ([PLAIN, Experiment("no key", {"filter": "none"})], [0], {}, "unknown key filter"),
        ([PLAIN], [0], {"clusters": 493}, r"clusters = 493 is larger than the number of images to train on \(492\)"),
        ([PLAIN], [], {}, "no seed is given"),
        ([PLAIN], [0, 0], {}, r"seeds = \[0, 0\] names a seed twice"),
        ([PLAIN], [0, -1], {}, r"seeds\.1 = -1 should be greater than or equal to 0"),
    ],
)
def test_impossible_rows_and_seeds_are_refused_before_anything_runs(
    own: Workspace,
    started: list[str],
    rows: list[Experiment],
    seeds: list[int],
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        run_experiments(own, PARAMETERS.changed(changes), rows, seeds, 1, SILENT)
    assert started == []
    assert not own.experiments.exists()


def test_a_framework_that_some_rows_would_let_collapse_is_refused(own: Workspace, started: list[str]) -> None:
    parameters = PARAMETERS.changed({"framework.name": "moco", "neighborhood.neighbors": "none", "framework.queue": 99})
    with pytest.raises(UserError, match=r"moco needs finetune\.instance above 0"):
        run_experiments(own, parameters, ROWS, [0], 1, SILENT)
    assert started == []


class Recorder(Observer):
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.amounts: list[int] = []

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[None]:
        self.total, self.done = total, done
        yield

    def step_done(self, amount: int = 1, note: str = "") -> None:
        self.amounts.append(amount)


@pytest.mark.timeout(120)
def test_a_killed_training_has_reported_its_epochs_and_resumes_after_the_saved_ones(
    own: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = set(multiprocessing.active_children())

    class Killer(Recorder):
        def step_done(self, amount: int = 1, note: str = "") -> None:
            super().step_done(amount, note)
            if sum(self.amounts) >= 2:  # the first epoch is saved before the second ends
                (worker,) = set(multiprocessing.active_children()) - others
                worker.kill()

    monkeypatch.setattr(experiments, "POLL", 0.01)
    endless = PARAMETERS.changed(ENDLESS)
    first = Killer()
    with pytest.raises(UserError, match=r"a training was killed, most likely because memory ran out; .*--jobs"):
        run_experiments(own, endless, [PLAIN], [0], 1, first)
    assert (first.done, first.total) == (0, 900_001)

    (state,) = own.experiments.rglob("state.pt")
    saved = Checkpoint(state.parent).epochs
    assert saved >= 1
    second = Killer()
    with pytest.raises(UserError):
        run_experiments(own, endless, [PLAIN], [0], 1, second)
    assert (second.done, second.total) == (saved, 900_001)
    assert max(second.amounts) < 1000, "what was done before is not reported again"


@pytest.mark.parametrize("killed", ["pretrain", "finetune"])
def test_a_training_that_was_killed_between_its_end_and_its_scores_is_only_scored(
    own: Workspace, started: list[str], killed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, scored = trainings.score, 0

    def dies(*arguments: Any) -> dict[str, float]:
        nonlocal scored
        scored += 1
        if scored == ("pretrain", "finetune").index(killed) + 1:
            raise SystemError("killed")
        return score(*arguments)

    monkeypatch.setattr(trainings, "score", dies)
    with pytest.raises(SystemError):
        outcome_of(own, PARAMETERS)
    (weights,) = own.experiments.glob(f"{killed}-*/**/weights.safetensors")
    assert not list(own.experiments.glob(f"{killed}-*/scores.json"))
    trained = weights.read_bytes()

    monkeypatch.setattr(trainings, "score", score)
    trained_again: list[str] = []
    for stage in ("pretrain", "finetune"):
        body = getattr(trainings, stage)

        def watched(*arguments: Any, stage: str = stage, body: Callable[..., Any] = body) -> Any:
            trained_again.append(stage)
            return body(*arguments)

        monkeypatch.setattr(trainings, stage, watched)
    started.clear()
    outcome = outcome_of(own, PARAMETERS)
    assert started == (["pretrain", "finetune"] if killed == "pretrain" else ["finetune"])
    assert trained_again == (["finetune"] if killed == "pretrain" else [])
    assert weights.exists() == (killed == "pretrain"), "nothing starts from a finished fine-tuning"
    if weights.exists():
        assert weights.read_bytes() == trained

    undisturbed = Workspace.at(own.root / "undisturbed")
    undisturbed.borrow(own, "artifacts/store")
    expected = outcome_of(undisturbed, PARAMETERS)
    assert (outcome.pretrained, outcome.finetuned) == (expected.pretrained, expected.finetuned)


def test_the_progress_counts_each_epoch_once_and_finished_runs_as_done(own: Workspace, started: list[str]) -> None:
    longer = PARAMETERS.changed({"pretrain.epochs": 3, "finetune.epochs": 2})
    for rows, done, reported in ((ROWS[:1], 0, 5), (ROWS[:2], 5, 2), (ROWS[:2], 7, 0)):
        recorder = Recorder()
        run_experiments(own, longer, rows, [0], 1, recorder)
        assert (recorder.done, sum(recorder.amounts), recorder.total) == (done, reported, done + reported)


def test_too_little_memory_on_the_gpu_is_one_message(
    own: Workspace, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainings, "pretrain", too_large)
    with pytest.raises(UserError, match=r"does not fit into the GPU's memory; lower .*batch_size.*--jobs"):
        outcome_of(own, PARAMETERS)


def test_a_failed_run_is_named(own: Workspace, started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(*_: object) -> None:
        raise UserError("the loss is not a finite number")

    monkeypatch.setattr(trainings, "finetune", diverges)
    with pytest.raises(UserError, match=r"^InC \+ LN, seed 3: the loss is not a finite number$"):
        outcome_of(own, PARAMETERS, ROWS[1], seed=3)


@pytest.mark.parametrize(
    ("seeds", "jobs", "of_pretraining", "of_finetuning"),
    [([0], 64, 64, 32), ([0, 1], 64, 32, 16), ([0, 1], 3, 32, 21), ([0], 1, 64, 64)],
)
def test_trainings_that_can_run_side_by_side_share_the_threads(
    own: Workspace,
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
    seeds: list[int],
    jobs: int,
    of_pretraining: int,
    of_finetuning: int,
) -> None:
    used: list[tuple[str, int]] = []

    def train(training: Training, threads: int) -> None:
        used.append((training.stage, threads))
        write_log(training.files.log, [{"epoch": 1, "loss": 1.0}])
        training.scores_file.write_text('{"acc": 0.5}')

    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(executors, "train", train)
    run_experiments(own, PARAMETERS, ROWS[:2], seeds, jobs, SILENT)
    assert set(used) == {("pretrain", of_pretraining), ("finetune", of_finetuning)}
    assert len(used) == 3 * len(seeds)
    used.clear()
    next(own.experiments.glob("finetune-*/scores.json")).unlink()
    run_experiments(own, PARAMETERS, ROWS[:2], seeds, jobs, SILENT)
    assert used == [("finetune", of_finetuning)], "what was finished before changes nothing"
