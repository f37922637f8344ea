"""The recipe of docs/backbones.md, with a small network of timm without its weights."""

import re
from pathlib import Path

import numpy as np
import pytest
from project import ROOT
from small_encoder import images

from conr.embedding.frozen import write_frozen_encoder
from conr.embedding.session import INPUT, open_session
from conr.models.backbones import parse_backbone

pytest.importorskip("timm")


def test_the_recipe_makes_a_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = re.search(r"```python\n(.*?)```", (ROOT / "docs/backbones.md").read_text(encoding="utf-8"), re.DOTALL)
    assert recipe is not None
    source = recipe[1].replace('"vit_small_patch14_dinov2.lvd142m", pretrained=True', '"vit_tiny_patch16_224"')
    assert source != recipe[1]
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "docs/backbones.md", "exec"), {})
    card = write_frozen_encoder(parse_backbone("onnx:dinov2.onnx"), 32, tmp_path / "encoder.onnx")
    assert (card.size, card.interpolation) == (224, "bicubic")
    features = open_session(tmp_path / "encoder.onnx", "cpu").run(None, {INPUT: images(3, 32)})[0]
    assert features.shape == (3, 192)
    assert np.isfinite(features).all()
