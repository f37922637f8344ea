"""conr info: what a folder holds, and with --verify whether it is what was written."""

import shutil
from pathlib import Path

import pytest
from forked import run_conr
from project import run, tiny

from conr.pipeline.info import info
from conr.pipeline.pretrain import pretrain
from conr.pipeline.workspace import Workspace


@pytest.fixture
def own(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished run."""
    shutil.copytree(finished.root, tmp_path / "run")
    return Workspace.at(tmp_path / "run")


def test_it_lists_what_is_there(own: Workspace) -> None:
    lines, wrong = info(own, verify=True)
    assert wrong == []
    assert [line.split("  ")[0] for line in lines] == [
        "images",
        "pretrained networks",
        "refined networks",
        "embeddings",
        "results",
    ]
    assert "1,797 of scikit-learn's digits" in lines[0]
    assert "seeds 4, 3" in lines[2]


def test_an_empty_folder_says_how_to_start(tmp_path: Path) -> None:
    assert info(Workspace.at(tmp_path), verify=True) == (["nothing yet; start with conr prepare, or dvc repro"], [])


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


def test_the_command_prints_them_and_fails_where_something_is_damaged(own: Workspace) -> None:
    assert run(own.root, "conr", "info", "--verify").splitlines()[-1] == "all of it is what was written"
    (own.refined / "3/log.csv").unlink()
    assert run_conr(own.root, "info").returncode == 0
    damaged = run_conr(own.root, "info", "--verify")
    assert damaged.returncode == 2
    assert "artifacts/finetune/3/log.csv is missing or damaged" in damaged.stderr
