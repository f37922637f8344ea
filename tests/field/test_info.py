"""conr info: what a folder holds, and with --verify whether it is what was written."""

import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from forked import run_conr
from project import run, tiny

from conr.pipeline.info import info
from conr.pipeline.pretrain import pretrain
from conr.pipeline.workspace import RECORD, Workspace
from conr.stages.cli import STAGES


@pytest.fixture
def own(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished run."""
    shutil.copytree(finished.root, tmp_path / "run")
    return Workspace.at(tmp_path / "run")


def test_it_says_what_each_stage_has_left(own: Workspace) -> None:
    left, wrong = info(own, verify=True)
    assert wrong == []
    assert [(stage.stage, stage.state) for stage in left] == [(name, "complete") for name in STAGES]
    assert [stage.holds for stage in left] == [
        "1,797 images of scikit-learn's digits",
        "seeds 3",
        "seeds 4, 3",
        "seeds 4, 3",
        "seeds 4, 3",
    ]
    now = datetime.now().astimezone()
    for stage in left:
        assert timedelta() <= now - datetime.strptime(stage.written, "%Y-%m-%d %H:%M").astimezone() < timedelta(days=1)


def test_in_an_empty_folder_no_stage_has_run(tmp_path: Path) -> None:
    left, wrong = info(Workspace.at(tmp_path), verify=True)
    assert wrong == []
    assert [(stage.state, stage.written, stage.holds) for stage in left] == [("not run", "", "")] * len(STAGES)


def test_a_stage_that_was_stopped_is_not_complete(own: Workspace) -> None:
    (own.refined / RECORD).unlink()
    saved = own.checkpoint("finetune-0123") / "state.pt"
    saved.parent.mkdir(parents=True)
    saved.touch()
    os.utime(saved, (0, 0))
    left, wrong = info(own, verify=False)
    assert wrong == []
    assert (left[2].state, left[2].written) == ("incomplete", "")
    assert left[2].holds.startswith("an unfinished training, saved 19")


def test_the_scores_that_git_keeps_are_no_results(tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path)
    workspace.results.mkdir()
    workspace.metrics.touch()
    left, _ = info(workspace, verify=False)
    assert left[-1].state == "not run"


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("artifacts/store/images.npy", "prepare"),
        ("artifacts/finetune/3/weights.safetensors", "finetune"),
        ("artifacts/embeddings/4.npy", "extract"),
        ("results/centroids.npy", "evaluate"),
    ],
)
def test_a_changed_byte_is_found_and_the_stage_named(own: Workspace, file: str, stage: str) -> None:
    content = bytearray((own.root / file).read_bytes())
    content[-3] ^= 1
    (own.root / file).write_bytes(content)
    _, (wrong,) = info(own, verify=True)
    assert str((own.root / file).parent) in wrong
    assert wrong.endswith(f"run conr {stage} again")


def test_an_artifact_of_another_run_is_found(own: Workspace) -> None:
    pretrain(own, tiny({"seed": 11}))
    _, wrong = info(own, verify=True)
    assert [text.split(" was made from another pretrained: ")[0] for text in wrong] == [
        str(own.refined),
        str(own.embedded),
    ]


def test_the_command_prints_them_and_fails_only_where_all_should_be_verified(own: Workspace) -> None:
    assert run(own.root, "conr", "info", "--verify").splitlines()[-1] == "all of it is what was written"
    (own.refined / "3/log.csv").unlink()
    (own.store / "manifest.json").write_text("{")
    told = run_conr(own.root, "info")
    assert told.returncode == 0
    assert "  prepare    damaged" in told.stdout.splitlines()
    assert "artifacts/store/manifest.json is missing or damaged" in told.stdout.partition("wrong\n")[2]
    damaged = run_conr(own.root, "info", "--verify")
    assert damaged.returncode == 2
    assert "artifacts/finetune/3/log.csv is missing or damaged" in damaged.stderr
