"""A frozen backbone through all stages: its features, without training, from a network that somebody else made."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from project import IMAGES, run_stages, table, tiny
from small_networks_onnx import write_network

from conr.data.store import load_manifest, open_store, write_subset
from conr.embedding.bfloat16 import open_embedder
from conr.embedding.session import infer, open_session, properties
from conr.errors import Note, UserError
from conr.files import sha256_of
from conr.models.backbones import Preprocessing, identity, parse_backbone
from conr.parameters import Parameters
from conr.pipeline.workspace import RECORD, Record, Workspace

FROZEN = ("pretrain", "finetune", "extract", "evaluate")
CARD = Preprocessing(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
TRAINED = 1438  # of the held-out protocol


def write_backbone(path: Path, weight: float = 1.0) -> Path:
    """A network whose 48 features are the means of 4 × 4 pixels of 16 × 16, times a weight."""
    size = ["batch", 3, 16, 16]
    nodes = [
        helper.make_node("AveragePool", ["x"], ["means"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Mul", ["flat", "weight"], ["features"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)]
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 48])]
    constants = [numpy_helper.from_array(np.array([weight], np.float32), "weight")]
    graph = helper.make_graph(nodes, "pixels", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    path.with_suffix(".json").write_text(CARD.model_dump_json())
    return path


def features_of(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What it computes, written out: enlarged to 16 pixels bilinearly, then 16 means of each channel, channel first."""
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    large = np.zeros((len(images), 16, 16, 3))
    for y, x in np.ndindex(16, 16):
        top, left = (y + 1) // 2, (x + 1) // 2
        v, w = (0.25 if y % 2 else 0.75), (0.25 if x % 2 else 0.75)
        upper, lower = ((1 - w) * padded[:, row, left] + w * padded[:, row, left + 1] for row in (top, top + 1))
        large[:, y, x] = (1 - v) * upper + v * lower
    normalized = (large / 255 - CARD.mean) / CARD.std
    return normalized.reshape(-1, 4, 4, 4, 4, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(-1, 48)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return lengths


def with_backbone(backbone: Path, changes: Mapping[str, Any] | None = None) -> Parameters:
    frozen = {
        "network.backbone": f"onnx:{backbone}",
        "precision": "float32",
        "finetune.epochs": 0,
        "network.dimension": 12,
    }
    return tiny({**frozen, **(changes or {})})


def record_of(folder: Path) -> Record:
    return Record.model_validate_json((folder / RECORD).read_bytes())


@pytest.fixture(scope="module")
def run(packed: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path]:
    """A run of all stages on the digits, and its backbone. Not to be written to."""
    folder = tmp_path_factory.mktemp("frozen")
    workspace, backbone = Workspace.at(folder / "run"), write_backbone(folder / "pixels.onnx")
    workspace.borrow(packed, "artifacts/store")
    run_stages(workspace, with_backbone(backbone, {"clusters": 10}), *FROZEN)
    return workspace, backbone


def test_features_are_those_of_the_backbone_centered_and_reduced(run: tuple[Workspace, Path]) -> None:
    workspace, _ = run
    images, chosen = open_store(workspace.store).images, np.arange(0, IMAGES, 30)
    vectors = np.load(workspace.pretrained.features)
    assert (vectors.shape, vectors.dtype) == ((IMAGES, 12), np.float32)
    raw = features_of(images)
    centered = unit(raw - raw.mean(axis=0))
    _, _, directions = np.linalg.svd(centered, full_matrices=False)
    expected = unit(centered[chosen] @ directions[:12].T)
    np.testing.assert_allclose(vectors[chosen] @ vectors[chosen].T, expected @ expected.T, atol=1e-4)


def test_the_encoder_gives_these_features_from_images_alone(run: tuple[Workspace, Path]) -> None:
    workspace, backbone = run
    session = open_session(workspace.encoder, "cpu")
    found = np.concatenate(list(infer(session, [open_store(workspace.store).images])))
    np.testing.assert_allclose(found, np.load(workspace.pretrained.features), atol=1e-5)
    facts = properties(session)
    assert (facts.image_size, facts.fit, facts.backbone) == (8, "crop", f"onnx:{backbone}")
    assert facts.preprocessing == CARD


def test_embeddings_before_and_after_are_the_features_and_nothing_is_trained(run: tuple[Workspace, Path]) -> None:
    workspace, _ = run
    features = workspace.pretrained.features.read_bytes()
    assert workspace.embeddings().read_bytes() == workspace.embeddings(0).read_bytes() == features
    assert {path.name for path in workspace.pretrained.folder.iterdir()} == {"encoder.onnx", "features.npy", RECORD}
    assert [path.name for path in workspace.refined.iterdir()] == [RECORD]


def test_records_name_the_backbone_and_what_was_made_from_what(run: tuple[Workspace, Path]) -> None:
    workspace, backbone = run
    pretrained, refined = record_of(workspace.pretrained.folder), record_of(workspace.refined)
    assert pretrained.made_from == {
        "store": load_manifest(workspace.store).training_identity,
        "backbone": identity(parse_backbone(f"onnx:{backbone}")),
    }
    assert pretrained.made.keys() == {"encoder.onnx", "features.npy"}
    assert pretrained.parameters is not None
    assert pretrained.parameters["network.backbone"] == f"onnx:{backbone}"
    assert refined.made_from["pretrained"] == sha256_of(workspace.pretrained.encoder)
    assert (refined.made, refined.clusters) == ({}, 10)


def test_all_images_are_grouped_and_scored(run: tuple[Workspace, Path]) -> None:
    workspace, _ = run
    assert len(table(workspace.assignments)) == IMAGES
    metrics = json.loads(workspace.metrics.read_text())
    assert metrics["acc"] > 0.6, "pixels of digits reach more"
    assert workspace.report.stat().st_size > 10_000


def test_another_backbone_is_another_run(run: tuple[Workspace, Path], workspace: Workspace, tmp_path: Path) -> None:
    before = run[0]
    workspace.borrow(before, "artifacts/finetune")
    other = write_backbone(tmp_path / "pixels.onnx", weight=2.0)
    run_stages(workspace, with_backbone(other), "pretrain")
    first, second = (record_of(one.pretrained.folder).made_from for one in (before, workspace))
    assert first["store"] == second["store"]
    assert first["backbone"] != second["backbone"]
    with pytest.raises(UserError, match=r"finetune was made from another pretrained: .*; run conr finetune again"):
        run_stages(workspace, with_backbone(other), "extract")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onnx:missing.onnx", r"onnx:missing\.onnx: missing\.onnx does not exist; name a file"),
        ("weights:missing.pth", r"weights:missing\.pth: missing\.pth does not exist; name a file"),
        ("resnet18", "resnet18 is unknown; It is one of scratch,"),
    ],
)
@pytest.mark.parametrize("encoder", ["trained", "frozen"])
def test_a_backbone_that_is_not_there_is_refused_before_anything_is_written(
    workspace: Workspace, text: str, message: str, encoder: str
) -> None:
    parameters = tiny({"network.backbone": text, "network.encoder": encoder, "finetune.epochs": 0})
    with pytest.raises(UserError, match=f"^network.backbone = {message}"):
        run_stages(workspace, parameters, "pretrain")
    assert not workspace.pretrained.folder.exists()
    assert not list(workspace.scratch.glob("checkpoints/*"))


def test_a_backbone_that_cannot_be_used_leaves_what_was_there(
    run: tuple[Workspace, Path], workspace: Workspace, tmp_path: Path
) -> None:
    run_stages(workspace, with_backbone(run[1]), "pretrain")
    before = {path: path.read_bytes() for path in workspace.pretrained.folder.iterdir()}
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(run[1].read_bytes()[:-50])
    with pytest.raises(UserError, match=f"^network.backbone: {damaged} is not a whole ONNX file"):
        run_stages(workspace, with_backbone(damaged), "pretrain")
    assert {path: path.read_bytes() for path in workspace.pretrained.folder.iterdir()} == before


def test_projections_are_fitted_to_the_images_to_train_on_only(tmp_path: Path) -> None:
    backbone = write_backbone(tmp_path / "pixels.onnx")
    parameters = with_backbone(backbone, {"prepare.protocol": "held-out", "pretrain.cached_views": 1})
    workspace = Workspace.at(tmp_path / "run")
    run_stages(workspace, parameters, "prepare", "pretrain")
    raw = features_of(open_store(workspace.store).images)
    mean = raw[:TRAINED].mean(axis=0)
    _, _, directions = np.linalg.svd(unit(raw[:TRAINED] - mean), full_matrices=False)
    expected = unit(unit(raw - mean) @ directions[:12].T)[TRAINED::20]
    vectors = np.load(workspace.pretrained.features)
    assert len(vectors) == IMAGES
    np.testing.assert_allclose(vectors[TRAINED::20] @ vectors[TRAINED::20].T, expected @ expected.T, atol=1e-4)
    assert np.load(workspace.pretrained.views).shape == (1, TRAINED, 12)


def few(packed: Workspace, workspace: Workspace, chosen: list[int]) -> Workspace:
    """A workspace whose store holds some of the digits."""
    workspace.store.unlink()
    write_subset(open_store(packed.store), np.array(chosen), workspace.store)
    return workspace


def test_the_number_of_clusters_is_proposed_from_the_features(
    packed: Workspace, workspace: Workspace, run: tuple[Workspace, Path]
) -> None:
    few(packed, workspace, list(range(60)))
    run_stages(workspace, with_backbone(run[1], {"clusters": "2-4"}), "pretrain", "finetune")
    clusters = record_of(workspace.refined).clusters
    assert clusters in (2, 3, 4)
    assert json.loads(workspace.proposal.read_text())["clusters"] == clusters


def test_views_are_kept_as_long_as_they_are_asked_for(
    packed: Workspace, workspace: Workspace, run: tuple[Workspace, Path]
) -> None:
    few(packed, workspace, list(range(20)))
    views, files = {"pretrain.cached_views": 2}, workspace.pretrained
    run_stages(workspace, with_backbone(run[1], views), "pretrain")
    assert np.load(files.views).shape == (2, 20, 12)
    assert record_of(files.folder).made["views.npy"] == sha256_of(files.views)
    run_stages(workspace, with_backbone(run[1]), "pretrain")
    assert not files.views.exists()


def test_a_training_replaces_a_frozen_backbone_and_the_other_way_round(
    packed: Workspace, workspace: Workspace, run: tuple[Workspace, Path]
) -> None:
    few(packed, workspace, list(range(20)))
    frozen, trained = with_backbone(run[1]), tiny({"pretrain.epochs": 1, "pretrain.batch_size": 20})
    names = []
    for parameters in (frozen, trained, frozen):
        run_stages(workspace, parameters, "pretrain")
        names.append({path.name for path in workspace.pretrained.folder.iterdir()} - {RECORD})
    assert names[0] == names[2] == {"encoder.onnx", "features.npy"}
    assert names[1] == {"weights.safetensors", "log.csv"}


@pytest.mark.parametrize("chosen", [[5] * 20, [0, 1, 2], [0, 0, 1, 1]], ids=["all equal", "three", "two pairs"])
def test_few_or_equal_images_end_in_a_result(
    packed: Workspace, workspace: Workspace, run: tuple[Workspace, Path], chosen: list[int]
) -> None:
    few(packed, workspace, chosen)
    small = {"clusters": 2, "k": 1, "k1": 2, "k2": 1, "evaluate.context": 64}
    run_stages(workspace, with_backbone(run[1], small), *FROZEN)
    assert len(table(workspace.assignments)) == len(chosen)


def test_one_image_is_refused(packed: Workspace, workspace: Workspace, run: tuple[Workspace, Path]) -> None:
    few(packed, workspace, [0])
    with pytest.raises(UserError, match="clusters = 10 is larger than the number of images to train on"):
        run_stages(workspace, with_backbone(run[1]), "pretrain", "finetune")


def test_features_of_one_number_are_grouped(packed: Workspace, workspace: Workspace, tmp_path: Path) -> None:
    """The digits are gray: a network of one pixel sees one number."""
    few(packed, workspace, list(range(30)))
    backbone = write_network(tmp_path / "small.onnx", size=8, rank=2)
    backbone.with_suffix(".json").write_text('{"size": 8}')
    changes = {"clusters": 2, "k": 3, "k1": 5, "k2": 2, "network.dimension": 2}
    run_stages(workspace, with_backbone(backbone, changes), *FROZEN)
    assert len(table(workspace.assignments)) == 30


@pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this processor does not compute in bfloat16",
)
def test_a_run_in_bfloat16_embeds_new_images_as_its_own(
    packed: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, backbone = Workspace.at(tmp_path / "run"), write_backbone(tmp_path / "pixels.onnx")
    workspace.borrow(packed, "artifacts/store")
    parameters = with_backbone(backbone, {"precision": "bfloat16", "clusters": 10})
    run_stages(workspace, parameters, "pretrain", "finetune", "extract")
    assert record_of(workspace.embedded).precision == "bfloat16"
    session = open_embedder(workspace.encoder, "cpu", exact=True)
    found = np.concatenate(list(infer(session, [open_store(workspace.store).images[:50]])))
    np.testing.assert_allclose(found, np.load(workspace.embeddings(0))[:50], atol=1e-5)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(Note, match="is run in float32"):
        run_stages(workspace, parameters, "extract")
    assert record_of(workspace.embedded).precision == "bfloat16"  # the features stay those of pretrain
