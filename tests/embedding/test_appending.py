"""Layers behind a frozen network: the file computes what projection and heads compute on its features."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from small_encoder import images
from small_networks_onnx import CHANNELS, SIZE, write_network

from conr.embedding.appending import append_heads, append_projection
from conr.embedding.frozen import write_frozen_encoder
from conr.embedding.projection import Projection, fit_projection
from conr.embedding.session import INPUT, OUTPUT, Properties, infer, open_session, properties
from conr.errors import UserError
from conr.models.backbones import Preprocessing, parse_backbone
from conr.models.cluster_heads import Head, HeadSpec

FACTS = Properties(image_size=8, fit="pad")
PIXELS = images(11, 8)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of a small network."""
    folder = tmp_path_factory.mktemp("frozen")
    card = Preprocessing(size=SIZE, scale=0.01).model_dump_json()
    network = write_network(folder / "network.onnx", rank=2, metadata={"preprocessing": card})
    write_frozen_encoder(parse_backbone(f"onnx:{network}"), 8, folder / "frozen.onnx")
    return folder / "frozen.onnx"


def run(path: Path) -> NDArray[np.float32]:
    return np.concatenate(list(infer(open_session(path, "cpu"), [PIXELS])))


@pytest.fixture
def projected(frozen: Path, tmp_path: Path) -> Path:
    projection = fit_projection(run(frozen), 3)
    append_projection(frozen, projection, tmp_path / "projected.onnx", FACTS)
    return tmp_path / "projected.onnx"


def test_a_projection_is_computed_inside_and_facts_are_kept(frozen: Path, projected: Path) -> None:
    features = run(frozen)
    vectors = run(projected)
    np.testing.assert_allclose(vectors, fit_projection(features, 3).apply(features), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    session = open_session(projected, "cpu")
    assert [value.name for value in session.get_inputs()] == [INPUT]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [(OUTPUT, ["batch", 3])]
    found, before = properties(session), properties(open_session(frozen, "cpu"))
    assert (found.image_size, found.fit, found.precision) == (8, "pad", "float32")
    assert (found.backbone, found.preprocessing) == (before.backbone, before.preprocessing)
    assert found.preprocessing is not None
    onnx.checker.check_model(onnx.load(projected))


def test_an_image_that_is_the_mean_becomes_zero(frozen: Path, tmp_path: Path) -> None:
    projection = Projection(run(frozen)[0], np.eye(CHANNELS, 2, dtype=np.float32))
    append_projection(frozen, projection, tmp_path / "projected.onnx", FACTS)
    assert np.linalg.norm(run(tmp_path / "projected.onnx")[0]) < 1e-5


@pytest.mark.parametrize("batch_size", [1, 11])
def test_heads_compute_what_pytorch_does(projected: Path, tmp_path: Path, batch_size: int) -> None:
    head = Head(HeadSpec(inputs=3, clusters=4, heads=5, temperature=0.2), torch.Generator().manual_seed(0))
    append_heads(projected, head.prototypes.numpy(), head.spec.temperature, tmp_path / "heads.onnx", FACTS)
    with torch.no_grad():
        expected = head(torch.from_numpy(run(projected))).numpy()
    session = open_session(tmp_path / "heads.onnx", "cpu")
    found = [session.run([OUTPUT], {INPUT: PIXELS[i : i + batch_size]})[0] for i in range(0, 11, batch_size)]
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    assert properties(session).backbone == properties(open_session(projected, "cpu")).backbone


def test_other_widths_are_errors_and_leave_no_file(frozen: Path, projected: Path) -> None:
    path = projected.with_name("other.onnx")
    with pytest.raises(ValueError, match=r"the projection is of 7 features, .* has 5"):
        append_projection(frozen, Projection(np.zeros(7, "f4"), np.eye(7, 2, dtype="f4")), path, FACTS)
    with pytest.raises(UserError, match=f"^{frozen.parent}/missing.onnx does not exist"):
        append_projection(frozen.with_name("missing.onnx"), Projection(np.zeros(5, "f4"), np.eye(5, 2)), path, FACTS)
    assert [file.name for file in projected.parent.iterdir()] == ["projected.onnx"]


def test_a_file_that_computes_something_else_is_refused(
    frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    projection = fit_projection(run(frozen), 3)
    wrong = Projection(projection.mean, projection.components[:, ::-1].copy())
    monkeypatch.setattr(Projection, "apply", lambda self, rows: projection_of(wrong, rows))
    with pytest.raises(UserError, match=r"^projected\.onnx does not compute what its parts do: for 1 images"):
        append_projection(frozen, projection, tmp_path / "projected.onnx", FACTS)
    assert list(tmp_path.iterdir()) == []


def projection_of(projection: Projection, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    centered = rows - projection.mean
    vectors = centered @ projection.components
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
