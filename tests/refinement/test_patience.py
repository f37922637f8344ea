"""finetune.patience: ConNR ends where clusters stand still, at the epoch that the log says, also when resumed."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from project import tiny
from small_networks import SmallEncoder, Unsaved, patterned, small_spec
from torch import Tensor

from conr.errors import UserError
from conr.observer import SILENT, Observer
from conr.parameters import FinetuneStage, Optimizer
from conr.parameters.groups import Finetune
from conr.pipeline.workspace import Workspace
from conr.refinement import objective
from conr.refinement.objective import MOVING, finetune, stand_still
from conr.stages import finetune as command
from conr.training import checkpoints, weights
from conr.training.checkpoints import Checkpoint
from conr.training.log import Row

EPOCHS, COUNT, BATCH, CLUSTERS = 8, 64, 32, 4
IMAGES = patterned(np.arange(COUNT) % CLUSTERS, noise=200)
LABELS = np.arange(COUNT) % CLUSTERS
MOVES = 0.04  # in the place of MOVING: of 64 images, two may change their cluster


@pytest.fixture(autouse=True)
def small_and_restless(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr(weights, "Encoder", SmallEncoder)
    monkeypatch.setattr(objective, "MOVING", MOVES)
    monkeypatch.setattr(checkpoints, "SAVING", float("inf"))  # after every epoch, however little time it took


def train(
    patience: int, checkpoint: Checkpoint | None = None, observer: Observer = SILENT, labels: Any = None
) -> tuple[Mapping[str, Tensor], list[Row]]:
    """ConNR from random networks: weights and log."""
    model = small_spec().build(seed=0)
    parameters = FinetuneStage(
        device="cpu",
        precision="float32",
        clusters=CLUSTERS,
        k=5,
        k1=5,
        k2=2,
        optimizer=Optimizer(base_learning_rate=2.0, warmup_epochs=0, schedule_epochs=EPOCHS),
        finetune=Finetune(epochs=EPOCHS, batch_size=BATCH, lr_scale=1.0, patience=patience),
    )
    log = finetune(model, IMAGES, labels, parameters, 0, checkpoint or Unsaved(), observer)
    return model.state_dict(), [{name: value for name, value in row.items() if name != "seconds"} for row in log]


def epochs_by_hand(changed: list[float], patience: int) -> int:
    """After how many epochs to end: count those in a row that change little."""
    quiet = 0
    for epoch, share in enumerate(changed):
        quiet = quiet + 1 if share < MOVES else 0
        if patience and quiet == patience:
            return epoch + 1
    return len(changed)


class Clusters(Observer):
    """The pseudo labels that each epoch starts with."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def traced(self, name: str, value: Any) -> None:
        if name == "pseudo labels":
            self.seen.append(value.clone())


def test_it_ends_at_the_epoch_that_the_log_says_and_trains_the_same_until_then(tmp_path: Path) -> None:
    clusters = Clusters()
    whole = Checkpoint(tmp_path)
    _, log = train(0, whole, clusters)
    state = whole.load()
    assert state is not None
    seen = [*clusters.seen, state["objective"]["pseudo_labels"]]
    by_hand = [
        sum(int(a != b) for a, b in zip(before, after, strict=True)) / COUNT
        for before, after in itertools.pairwise(seen)
    ]
    assert [row["changed_assignments"] for row in log] == by_hand
    ends = {patience: epochs_by_hand(by_hand, patience) for patience in (1, 2, 3)}
    assert ends[1] < ends[2] < ends[3] == EPOCHS, "what is to be told apart"
    for patience, end in ends.items():
        assert train(patience)[1] == log[:end]


@given(st.lists(st.sampled_from([0.0, 0.03, MOVES - 1e-9, MOVES, 0.5]), max_size=12), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_clusters_stand_still_after_enough_quiet_epochs_in_a_row(changed: list[float], patience: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "MOVING", MOVES)
        ends = [n for n in range(len(changed) + 1) if stand_still(changed[:n], patience)]
    expected = epochs_by_hand(changed, patience)
    assert (min(ends) if ends else len(changed)) == expected


class Killed(BaseException):
    """Stands for the signal that ends a run."""


class KillAfter(Observer):
    """The process dies when so many epochs are saved."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


class NoStep(Observer):
    """Nothing is left to train."""

    def step_done(self, amount: int = 1, note: str = "") -> None:
        raise AssertionError


def test_a_resumed_training_ends_at_the_same_epoch_with_the_same_weights(tmp_path: Path) -> None:
    patience = 2
    expected, log = train(patience)
    assert patience < len(log) < EPOCHS
    for killed in (len(log) - 1, len(log)):  # in the middle of the quiet epochs, and after the last one
        folder = tmp_path / str(killed)
        with pytest.raises(Killed):
            train(patience, Checkpoint(folder), KillAfter(killed))
        found, resumed = train(patience, Checkpoint(folder), NoStep() if killed == len(log) else SILENT)
        assert resumed == log
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_the_last_epoch_is_saved_though_no_checkpoint_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SAVING", 1e-9)
    _, log = train(2, Checkpoint(tmp_path))
    assert Checkpoint(tmp_path).epochs == len(log)


def test_labels_do_not_decide_where_it_ends() -> None:
    _, log = train(2)
    assert [row["loss"] for row in train(2, labels=LABELS)[1]] == [row["loss"] for row in log]


def test_the_summary_says_that_it_ended_why_and_after_how_many_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"loss": -1.5, "cluster_sizes": "40 24"}
    monkeypatch.setattr(command, "finetune", lambda *_: {0: [row] * 7})
    workspace = Workspace.at(tmp_path)
    early = FinetuneStage.of(tiny({"finetune.epochs": 8, "finetune.patience": 3}))
    assert command.run(workspace, early, SILENT).startswith(
        f"7 of 8 epochs (finetune.patience = 3: fewer than {MOVING:.1%} of the images changed their cluster in each of "
        "the last ones) of ConNR, loss -1.500 → -1.500, cluster sizes 40 24; weights in "
    )
    whole = FinetuneStage.of(tiny({"finetune.epochs": 7, "finetune.patience": 3}))
    assert command.run(workspace, whole, SILENT).startswith("7 epochs of ConNR, ")


def test_heads_on_a_frozen_backbone_have_none() -> None:
    message = "finetune.patience = 5 is for networks that are trained, and network.backbone = onnx:model.onnx stays as "
    with pytest.raises(UserError, match=f"{re.escape(message)}it is; set finetune.patience: 0"):
        tiny({"network.backbone": "onnx:model.onnx", "pretrain.cached_views": 2, "finetune.patience": 5})
