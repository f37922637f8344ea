"""Frozen networks in bfloat16 by OpenVINO: like float32, the same in every batch, and refused where impossible."""

import importlib.util
from pathlib import Path

import numpy as np
import openvino
import pytest
from small_encoder import images
from small_networks_onnx import SIZE, write_network

from conr.embedding import bfloat16
from conr.embedding.appending import append_projection
from conr.embedding.bfloat16 import OpenVinoSession, computed_in, open_embedder, settle_precision
from conr.embedding.frozen import write_frozen_encoder
from conr.embedding.projection import fit_projection
from conr.embedding.session import PROVIDERS, Properties, infer, open_session, properties, run_batches
from conr.errors import Note, UserError
from conr.models.backbones import Preprocessing, parse_backbone

HERE = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
in_bfloat16 = pytest.mark.skipif(not HERE, reason="this processor does not compute in bfloat16")
CARD = Preprocessing(size=SIZE, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), scale=0.01)
IMAGE_SIZE = 9  # resized: products and factors of channels come one after the other, which OpenVINO once refused


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """The features of a small frozen network, in float32."""
    metadata = {"preprocessing": CARD.model_dump_json()}
    network = write_network(tmp_path / "network.onnx", rank=2, metadata=metadata)
    write_frozen_encoder(parse_backbone(f"onnx:{network}"), IMAGE_SIZE, tmp_path / "encoder.onnx")
    return tmp_path / "encoder.onnx"


def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_float32_stays_float32(encoder: Path) -> None:
    before = encoder.read_bytes()
    assert settle_precision(encoder, "float32", "cpu", images(5, IMAGE_SIZE)) == "float32"
    assert encoder.read_bytes() == before
    assert open_embedder(encoder, "cpu").get_providers() == [PROVIDERS["cpu"]]


@in_bfloat16
@pytest.mark.parametrize("asked", ["auto", "bfloat16"])
def test_features_in_bfloat16_are_like_those_in_float32_and_the_same_in_every_batch(encoder: Path, asked: str) -> None:
    pixels = images(300, IMAGE_SIZE)
    exact = run_batches(open_session(encoder, "cpu"), pixels)
    assert settle_precision(encoder, asked, "cpu", pixels) == "bfloat16"
    session = open_embedder(encoder, "auto")
    assert isinstance(session, OpenVinoSession)
    assert (session.get_providers(), computed_in(session)) == ([PROVIDERS["openvino"]], "bfloat16")
    found = run_batches(session, pixels)
    np.testing.assert_array_equal(np.concatenate(list(infer(session, [pixels[:7], pixels[7:]]))), found)
    np.testing.assert_array_equal(np.concatenate([run_batches(session, pixels[[row]]) for row in range(9)]), found[:9])
    np.testing.assert_allclose(found, exact, rtol=0.03, atol=0.03 * exact.max())
    assert np.abs(found - exact).max() / exact.max() > 1e-4  # else nothing was rounded


@in_bfloat16
def test_what_is_made_of_an_encoder_in_bfloat16_is_in_bfloat16(encoder: Path, tmp_path: Path) -> None:
    pixels = images(40, IMAGE_SIZE)
    settle_precision(encoder, "auto", "cpu", pixels)
    features = run_batches(open_embedder(encoder, "cpu"), pixels)
    projection, path = fit_projection(features, 3), tmp_path / "projected.onnx"
    append_projection(encoder, projection, path, Properties(image_size=IMAGE_SIZE, fit="crop"))
    session = open_embedder(path, "cpu", exact=True)
    assert (properties(session).precision, properties(session).fit) == ("bfloat16", "crop")
    found = run_batches(session, pixels)
    assert (found * projection.apply(features)).sum(axis=1).min() > 0.999  # cosines


def test_without_openvino_auto_is_float32_and_bfloat16_is_refused_with_advice(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_openvino(monkeypatch)
    assert settle_precision(encoder, "auto", "cpu", images(5, IMAGE_SIZE)) == "float32"
    advice = r"pip install 'conr\[openvino\]'; or use --precision float32"
    with pytest.raises(
        UserError, match=f"precision = bfloat16 is not possible: the package openvino is not installed.*{advice}"
    ):
        settle_precision(encoder, "bfloat16", "cpu", images(5, IMAGE_SIZE))


@in_bfloat16
def test_where_openvino_is_absent_an_encoder_in_bfloat16_runs_in_float32_and_says_so(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = images(5, IMAGE_SIZE)
    exact = run_batches(open_session(encoder, "cpu"), pixels)
    settle_precision(encoder, "bfloat16", "cpu", pixels)
    without_openvino(monkeypatch)
    with pytest.warns(Note, match=r"encoder\.onnx was made in bfloat16 and is run in float32, .*conr\[openvino\]"):
        session = open_embedder(encoder, "cpu")
    np.testing.assert_array_equal(run_batches(session, pixels), exact)
    assert computed_in(session) == "float32"
    with pytest.raises(
        UserError, match=r"encoder\.onnx is an encoder in bfloat16: the package openvino is not installed"
    ):
        open_embedder(encoder, "cpu", exact=True)


def test_a_processor_without_bfloat16_computes_in_float32(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    assert settle_precision(encoder, "auto", "cpu", images(5, IMAGE_SIZE)) == "float32"
    with pytest.raises(UserError, match="this processor does not compute in bfloat16; or use --precision float32"):
        settle_precision(encoder, "bfloat16", "cpu", images(5, IMAGE_SIZE))


@in_bfloat16
@pytest.mark.parametrize(("where", "what"), [(openvino.Core, "compile_model"), (openvino.InferRequest, "infer")])
def test_a_network_that_openvino_cannot_run_is_computed_in_float32(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, where: type, what: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(where, what, fails)
    assert settle_precision(encoder, "auto", "cpu", images(5, IMAGE_SIZE)) == "float32"
    with pytest.raises(UserError, match=r"OpenVINO cannot run the network \(no such operator\)"):
        settle_precision(encoder, "bfloat16", "cpu", images(5, IMAGE_SIZE))


@in_bfloat16
@pytest.mark.parametrize("count", [1, 50])
def test_features_that_differ_too_much_are_refused(encoder: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    before = encoder.read_bytes()
    monkeypatch.setattr(bfloat16, "SIMILARITY", 1.01)
    assert settle_precision(encoder, "auto", "cpu", images(count, IMAGE_SIZE)) == "float32"
    compared = min(count, bfloat16.SAMPLE)
    with pytest.raises(UserError, match=rf"is (0\.9\d\d|1\.000) on {compared} images \(accepted: 1\.01\)"):
        settle_precision(encoder, "bfloat16", "cpu", images(count, IMAGE_SIZE))
    assert encoder.read_bytes() == before
