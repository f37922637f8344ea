"""Artifacts of different runs are never mixed: each names what it was made from, and every reader compares."""

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project import FINISHED, SEEDS, run_stages, tiny

from conr.data.sources import array_source
from conr.errors import UserError
from conr.files import load_json, save_array, sha256_of
from conr.parameters import Parameters
from conr.pipeline.assign import open_encoder
from conr.pipeline.finetune import finetune
from conr.pipeline.prepare import prepare
from conr.pipeline.pretrain import pretrain
from conr.pipeline.records import note_other_parameters
from conr.pipeline.workspace import RECORD, Record, Workspace

PARAMETERS = tiny(FINISHED)


@pytest.fixture
def own(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished run."""
    shutil.copytree(finished.root, tmp_path / "run")
    return Workspace.at(tmp_path / "run")


def pack_others(workspace: Workspace) -> None:
    """Pack as many images of the same size, with other pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (1797, 8, 8, 3), dtype=np.uint8)
    prepare(workspace, tiny(), source=array_source(pixels, [str(number % 10) for number in range(1797)], 8))


def refused(workspace: Workspace, stage: str, parameters: Parameters = PARAMETERS) -> str:
    """Run a stage, assert that it refuses and that it changes no artifact; returns what it says."""
    before = {
        path: sha256_of(path) for path in workspace.root.rglob("*") if path.is_file() and "locks" not in path.parts
    }
    with pytest.raises(UserError) as error:
        run_stages(workspace, parameters, stage)
    after = {
        path: sha256_of(path) for path in workspace.root.rglob("*") if path.is_file() and "locks" not in path.parts
    }
    assert before == after
    return str(error.value)


def test_a_whole_run_names_what_each_artifact_was_made_from(finished: Workspace) -> None:
    refined, embedded, results = (
        load_json(folder / RECORD, Record, "") for folder in (finished.refined, finished.embedded, finished.results)
    )
    assert refined.seeds == embedded.seeds == results.seeds == SEEDS
    assert (refined.precision, embedded.precision, results.precision) == (None, "float32", None)
    pretrained, first = sha256_of(finished.pretrained.weights), sha256_of(finished.finetuned(SEEDS[0]).weights)
    assert refined.made_from["pretrained"] == embedded.made_from["pretrained"] == pretrained
    assert embedded.made_from["finetuned"] == first
    assert embedded.made_from["encoder"] == results.made_from["encoder"] == sha256_of(finished.encoder)
    assert results.made == {"centroids.npy": sha256_of(finished.centroids)}


@pytest.mark.parametrize(
    ("stage", "made", "remedy"),
    [("finetune", "pretrained", "pretrain"), ("extract", "refined", "finetune"), ("evaluate", "embedded", "extract")],
)
def test_images_that_were_packed_anew_are_not_mixed_with_artifacts_of_the_old(
    own: Workspace, stage: str, made: str, remedy: str
) -> None:
    pack_others(own)
    path = own.pretrained.weights.parent if made == "pretrained" else getattr(own, made)
    said = refused(own, stage)
    assert re.match(rf"{path} was made from another store: [0-9a-f]{{8}} then, [0-9a-f]{{8}} now; ", said)
    assert said.endswith(f"run conr {remedy} again")


def test_another_pretraining_is_not_mixed_with_networks_refined_from_the_old(own: Workspace) -> None:
    pretrain(own, tiny({"seed": 11}))
    assert refused(own, "extract").startswith(f"{own.refined} was made from another pretrained: ")
    assert refused(own, "evaluate").startswith(f"{own.embedded} was made from another pretrained: ")


@pytest.mark.parametrize("stage", ["extract", "evaluate"])
def test_missing_networks_are_named_with_what_to_run(own: Workspace, stage: str) -> None:
    own.pretrained.weights.unlink()
    assert re.search(
        r" was made from another pretrained: [0-9a-f]{8} then, missing now; run conr \w+", refused(own, stage)
    )


def test_networks_refined_anew_are_not_mixed_with_embeddings_of_the_old(own: Workspace) -> None:
    finetune(own, tiny({**FINISHED, "k": 3}))
    assert refused(own, "evaluate").startswith(f"{own.embedded} was made from another finetuned: ")


def test_another_number_of_clusters_is_not_mixed_with_the_old_table(own: Workspace) -> None:
    save_array(own.centroids, np.ones((3, 16), np.float32))
    with pytest.raises(UserError, match=f"^{own.centroids} is missing or damaged "):
        open_encoder(own, "cpu")


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("artifacts/pretrain/weights.safetensors", "finetune"),
        ("artifacts/pretrain/log.csv", "finetune"),
        ("artifacts/finetune/4/weights.safetensors", "extract"),
        ("artifacts/finetune/3/log.csv", "extract"),
        ("artifacts/embeddings/3.npy", "evaluate"),
        ("artifacts/embeddings/pretrained.npy", "evaluate"),
    ],
)
def test_a_file_with_one_changed_byte_is_refused(own: Workspace, file: str, stage: str) -> None:
    content = bytearray((own.root / file).read_bytes())
    content[-2] ^= 1
    (own.root / file).write_bytes(content)
    assert refused(own, stage).startswith(f"{own.root / file} is missing or damaged (it is not what was written); run ")


def test_another_encoder_is_not_mixed_with_the_old_centroids(own: Workspace) -> None:
    run_stages(own, tiny({**FINISHED, "seeds": [3]}), "finetune", "extract")
    with pytest.raises(UserError, match=f"^{own.results} was made from another encoder: "):
        open_encoder(own, "cpu")


@pytest.mark.parametrize(
    ("stage", "changes", "noted"),
    [
        ("finetune", {"network.width": 8}, ["network.width = 4 (now 8)"]),
        ("finetune", {"finetune.lr_scale": 0.5, "k1": 7}, []),
        ("finetune", {"seed": 9}, ["seed = 3 (now 9)"]),
        ("evaluate", {"k": 3, "views.hue": 0.3}, ["views.hue = ", "(now 0.3)", "k = 20 (now 3)"]),
        ("pretrain", {"network.width": 8}, []),
    ],
)
def test_other_parameters_of_earlier_stages_are_noted(
    finished: Workspace, stage: str, changes: dict[str, Any], noted: list[str]
) -> None:
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        note_other_parameters(finished, stage, tiny({**FINISHED, **changes}))
    said = " ".join(str(note.message) for note in notes)
    assert all(text in said for text in noted)
    assert bool(said) == bool(noted)


def test_after_the_remedy_everything_goes_together_again(own: Workspace) -> None:
    pack_others(own)
    run_stages(own, PARAMETERS, "pretrain", "finetune", "extract", "evaluate")
    open_encoder(own, "cpu")
