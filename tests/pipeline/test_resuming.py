"""A training that was stopped resumes only if all it depends on is the same; `test_interruption.py` stops processes."""

import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project import run_stages, table, tiny

from conr.data.store import open_store, write_store
from conr.observer import Observer
from conr.parameters import FinetuneStage, PretrainStage
from conr.pipeline.finetune import finetune
from conr.pipeline.pretrain import pretrain
from conr.pipeline.workspace import Workspace
from conr.training import checkpoints

PARAMETERS = tiny({"prepare.imbalance": 60.0, "pretrain.epochs": 2, "finetune.batch_size": 128})  # 492 digits


class Stopping(Observer):
    """Stops a training once its first epoch is saved."""

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        raise KeyboardInterrupt


class Counting(Observer):
    """Counts the epochs that are trained."""

    def __init__(self) -> None:
        self.epochs = 0

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        self.epochs += 1


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A few packed digits."""
    workspace = Workspace.at(tmp_path / "run")
    run_stages(workspace, PARAMETERS, "prepare")
    return workspace


@pytest.fixture
def stopped(workspace: Workspace) -> Workspace:
    """After the first of two epochs of pretraining."""
    with pytest.raises(KeyboardInterrupt):
        pretrain(workspace, PretrainStage.of(PARAMETERS), Stopping())
    assert saved(workspace) == 1
    return workspace


def saved(workspace: Workspace) -> int:
    """How many trainings can be resumed."""
    return len(list(workspace.checkpoint("").iterdir()))


def epochs_trained(workspace: Workspace, changes: Mapping[str, Any]) -> int:
    counting = Counting()
    pretrain(workspace, PretrainStage.of(PARAMETERS.changed(changes)), counting)
    return counting.epochs


def test_the_same_run_trains_the_rest_and_leaves_no_checkpoint(stopped: Workspace) -> None:
    # What pretraining does not depend on.
    assert epochs_trained(stopped, {"clusters": 7, "k1": 9, "seeds": [1, 2], "evaluate.gallery": 7}) == 1
    assert saved(stopped) == 0
    assert len(table(stopped.pretrained.log)) == 2


def test_changed_parameters_do_not_resume(stopped: Workspace) -> None:
    assert epochs_trained(stopped, {"seed": 1}) == 2
    assert saved(stopped) == 1, "the other run's checkpoint is still there"
    assert epochs_trained(stopped, {}) == 1


def test_changed_images_do_not_resume(stopped: Workspace) -> None:
    store = open_store(stopped.store)
    pixels = 255 - store.images
    np.save(stopped.store / "images.npy", pixels)
    write_store(stopped.store, store.manifest.model_copy(update={"checksum": sha256(pixels).hexdigest()}))
    assert epochs_trained(stopped, {}) == 2
    assert saved(stopped) == 1


@pytest.mark.parametrize(
    ("file", "old", "new", "resumes"),
    [
        ("training/schedules.py", "math.cos(", "math.sin(", False),
        ("refinement/group.py", '"""', '"""A comment. ', True),
        ("report/figures.py", "DPI", "RESOLUTION", True),
    ],
    ids=["a computation", "a docstring", "what no training depends on"],
)
def test_a_changed_computation_drops_checkpoints(
    stopped: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, resumes: bool
) -> None:
    shutil.copytree(checkpoints.CODE, tmp_path / "code")
    changed = tmp_path / "code" / file
    text = changed.read_text()
    assert old in text
    changed.write_text(text.replace(old, new, 1))
    monkeypatch.setattr(checkpoints, "CODE", tmp_path / "code")
    assert epochs_trained(stopped, {}) == (1 if resumes else 2)


def test_other_pretrained_networks_do_not_resume(workspace: Workspace) -> None:
    parameters = PARAMETERS.changed({"pretrain.epochs": 1, "finetune.epochs": 2})
    run_stages(workspace, parameters, "pretrain")
    with pytest.raises(KeyboardInterrupt):
        finetune(workspace, FinetuneStage.of(parameters), Stopping())
    run_stages(workspace, parameters.changed({"seed": 1}), "pretrain")
    counting = Counting()
    finetune(workspace, FinetuneStage.of(parameters), counting)
    assert counting.epochs == 2
    assert saved(workspace) == 1
