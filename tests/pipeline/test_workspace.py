"""A workspace is the address of all that a run makes; two of them in one process do not disturb each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from project import SEEDS, run_stages, tiny

from conr.data.store import open_store
from conr.observer import Observer
from conr.parameters import PretrainStage
from conr.pipeline.pretrain import pretrain
from conr.pipeline.workspace import RECORD, TrainingFiles, Workspace

NO_ADDRESSES = {"root", "scratch", "here", "at", "borrow", "outside", "own_checkpoint", "remove_checkpoints", "locked"}


def addresses(workspace: Workspace) -> dict[str, Path]:
    """What every property and method of a workspace says, by its name."""
    found: dict[str, Path] = {}

    def add(name: str, value: object) -> None:
        if isinstance(value, TrainingFiles):
            found.update({f"{name}.weights": value.weights, f"{name}.log": value.log})
        else:
            assert isinstance(value, Path), name
            found[name] = value

    for name in vars(Workspace):
        if name.startswith("_") or name in NO_ADDRESSES:
            continue
        if not callable(getattr(workspace, name)):
            add(name, getattr(workspace, name))
        elif name == "embeddings":
            add("pretrained embeddings", workspace.embeddings())
            add("embeddings 7", workspace.embeddings(7))
            add("embeddings 8", workspace.embeddings(8))
        else:
            for argument in (7, 8):
                given = str(argument) if name in ("checkpoint", "shards") else argument
                add(f"{name} {argument}", getattr(workspace, name)(given))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_address_is_inside_the_root_or_the_scratch_space_and_there_is_one_for_each_artifact() -> None:
    found = addresses(Workspace(Path("/runs/one"), Path("/scratch")))
    assert {"store", "pretrained.weights", "finetuned 7.log", "embeddings 7", "checkpoint 7"} <= found.keys()
    inside_scratch = {name for name, path in found.items() if path.is_relative_to("/scratch")}
    named = {f"{name} {number}" for name in ("checkpoint", "shards") for number in (7, 8)}
    assert inside_scratch == {"experiments", "locks", "packed_folder"} | named
    for name in found.keys() - inside_scratch:
        assert found[name].is_relative_to("/runs/one"), name
    assert len(set(found.values())) == len(found), "no two artifacts have the same address"
    assert not {Path("/runs/one"), Path("/scratch")} & set(found.values())


def test_two_workspaces_have_no_address_in_common() -> None:
    one, other = (addresses(Workspace.at(Path(folder))) for folder in ("one", "other"))
    assert not set(one.values()) & set(other.values())


def test_a_run_writes_to_its_addresses_only(finished: Workspace) -> None:
    known = [*addresses(finished).values(), *(finished.finetuned(seed).weights.parent for seed in SEEDS)]
    known += [finished.pretrained.weights.parent / RECORD, *map(finished.embeddings, SEEDS)]
    for file in contents(finished.root):
        assert file == "params.yaml" or any((finished.root / file).is_relative_to(path) for path in known), file
    assert not any(finished.checkpoint("").iterdir()), "a finished run leaves no checkpoint"


def test_the_current_folder_is_a_workspace_whose_scratch_space_is_in_the_repository_that_dvc_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert Workspace.here() == Workspace() == Workspace.at(Path())
    monkeypatch.setenv("DVC_ROOT", "/repository")
    assert Workspace.here() == Workspace(Path(), Path("/repository/.conr"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [("data", "/repository/data"), ("/mnt/data", "/mnt/data"), ("~/data", "/home/someone/data"), (".", "/repository")],
)
def test_a_path_that_dvc_does_not_track_is_relative_to_the_repository(
    path: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    copy = Workspace(Path("/copy"), Path("/repository/.conr"))
    assert copy.outside(path) == Path(expected)


def test_borrowed_artifacts_are_those_of_the_other_workspace(tmp_path: Path) -> None:
    one, other, own = (Workspace.at(tmp_path / name) for name in ("one", "other", "own"))
    for number, lender in enumerate((one, other)):
        lender.store.mkdir(parents=True)
        (lender.store / "images.npy").write_text(f"images {number}")
        lender.embedded.mkdir()
        lender.embeddings(7).write_text(f"embeddings {number}")
    own.borrow(one, "artifacts/store", "artifacts/embeddings/7.npy")
    assert (own.store / "images.npy").read_text() == "images 0"
    assert own.embeddings(7).read_text() == "embeddings 0"
    assert sorted(path.name for path in own.embedded.iterdir()) == ["7.npy"]

    own.borrow(other, "artifacts/store")  # instead
    assert (own.store / "images.npy").read_text() == "images 1"
    assert own.embeddings(7).read_text() == "embeddings 0"
    assert (one.store / "images.npy").read_text() == "images 0"


def test_a_borrowed_artifact_is_found_from_a_relative_workspace_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lender = Workspace.at(tmp_path / "lender")
    lender.store.mkdir(parents=True)
    relative = Workspace.at(Path(*[".."] * len(Path.cwd().parts[1:]), *lender.root.parts[1:]))
    own = Workspace.at(tmp_path / "deep" / "own")
    own.borrow(relative, "artifacts/store")
    assert own.store.resolve() == lender.store.resolve()


def test_a_run_that_starts_while_another_one_trains_in_the_same_process_changes_nothing_in_it(
    packed: Workspace, tmp_path: Path
) -> None:
    first, second, undisturbed = (Workspace.at(tmp_path / name) for name in ("first", "second", "undisturbed"))
    parameters = tiny({"pretrain.epochs": 2})
    others = tiny({"seed": 5, "prepare.labels": "none", "pretrain.epochs": 1, "pretrain.batch_size": 256})
    for workspace in (first, undisturbed):
        run_stages(workspace, parameters, "prepare")
    before = contents(first.root)

    class StartsAnother(Observer):
        def epoch_done(self, row: Mapping[str, Any]) -> None:
            if not second.root.exists():
                assert contents(first.root).keys() - before.keys(), "the first has saved its epoch"
                run_stages(second, others, "prepare", "pretrain")

    pretrain(first, PretrainStage.of(parameters), StartsAnother())
    run_stages(undisturbed, parameters, "pretrain")
    assert first.pretrained.weights.read_bytes() == undisturbed.pretrained.weights.read_bytes()
    assert second.pretrained.weights.read_bytes() != first.pretrained.weights.read_bytes()
    images = "images.npy"
    assert (first.store / images).read_bytes() == (second.store / images).read_bytes()
    assert [open_store(workspace.store).labels is None for workspace in (first, second)] == [False, True]
    assert {name: contents(first.root)[name] for name in before} == before
