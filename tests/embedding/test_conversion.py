"""PyTorch weights as ONNX: compared with PyTorch, kept in a cache, made again where that is damaged."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from small_encoder import images
from small_networks_onnx import write_network
from torch import nn

from conr.embedding import conversion
from conr.embedding.conversion import cache_folder, converted, to_onnx
from conr.embedding.frozen import write_frozen_encoder
from conr.embedding.network import CARD, open_network
from conr.embedding.session import infer, open_session, properties
from conr.errors import UserError
from conr.files import sha256_of
from conr.models.backbones import SMALLEST, Backbone, Preprocessing, parse_backbone


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "conr" / "backbones"


class Small(nn.Module):
    """A network whose conversion takes a second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layer(pixels).mean(dim=(2, 3))
        return features


def test_a_converted_network_computes_what_pytorch_does_and_holds_its_card(tmp_path: Path) -> None:
    card = Preprocessing(size=9, channels="bgr")
    to_onnx(Small().train(), card, tmp_path / "network.onnx")
    network = open_network(tmp_path / "network.onnx")
    assert (network.preprocessing, network.fixed_batch) == (card, None)
    for count in (1, 5):
        pixels = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = Small().eval()(pixels).numpy()
        np.testing.assert_allclose(network.run(pixels.double().numpy()), expected, atol=1e-5)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Backbone, list[int]]:
    """A backbone that is a ready network instead of a converted one; and the sizes that it is converted for."""
    sizes: list[int] = []

    def copied(module: nn.Module, card: Preprocessing, path: Path) -> None:
        sizes.append(card.size)
        write_network(path, size=card.size, rank=2, metadata={CARD: card.model_dump_json()})

    monkeypatch.setattr(conversion, "to_onnx", copied)
    monkeypatch.setattr(conversion, "_build", lambda backbone, size: (Small(), Preprocessing(size=size)))
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    return parse_backbone(f"weights:{path}"), sizes


def test_a_conversion_is_made_once_for_weights_and_size(small: tuple[Backbone, list[int]], cache: Path) -> None:
    backbone, sizes = small
    path = converted(backbone, 200)
    assert converted(backbone, 200) == path
    assert sizes == [200]
    assert path.parent == cache == cache_folder()
    assert open_network(path).preprocessing == Preprocessing(size=200)
    others = {converted(backbone, size) for size in (8, 64, SMALLEST)}
    assert len(others) == 1, "smaller images are enlarged"
    assert backbone.path is not None
    backbone.path.write_bytes(b"other weights")
    assert converted(backbone, 200) not in {path, *others}
    assert sizes == [200, SMALLEST, 200]


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "no checksum", "another checksum", "deleted"])
def test_a_damaged_conversion_is_made_again(small: tuple[Backbone, list[int]], damage: str) -> None:
    backbone, sizes = small
    path = converted(backbone, 8)
    whole, checksum = path.read_bytes(), path.with_suffix(".sha256")
    contents = {"truncated": whole[:-20], "changed": whole[:-1] + b"?", "empty": b""}
    if damage in contents:
        path.write_bytes(contents[damage])
    elif damage == "deleted":
        path.unlink()
    elif damage == "no checksum":
        checksum.unlink()
    else:
        checksum.write_bytes(b"\xff" * 64)
    assert converted(backbone, 8) == path
    assert len(sizes) == 2
    assert sha256_of(path) == checksum.read_text()
    open_network(path)


def test_a_cache_that_cannot_be_written_to_is_named(
    small: tuple[Backbone, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=f"^cannot write to {tmp_path}/file/conr/backbones .*; set XDG_CACHE_HOME to"):
        converted(small[0], 8)


def test_the_cache_is_in_the_home_folder_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/conr/backbones")


def test_a_conversion_that_differs_from_pytorch_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    class Wandering(Small):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            wandering = 0.0 if torch.compiler.is_exporting() else 0.01
            return super().forward(pixels) * (1 + wandering)

    with pytest.raises(UserError, match=r"onnxruntime differs from PyTorch by 0\.\d+ \(accepted: 0\.0001\)"):
        to_onnx(Wandering(), Preprocessing(size=8), tmp_path / "network.onnx")


def test_a_converted_network_is_used_without_pytorch(small: tuple[Backbone, list[int]], tmp_path: Path) -> None:
    backbone, _ = small
    converted(backbone, 8)
    code = (
        "import sys; from pathlib import Path; from conr.embedding.frozen import write_frozen_encoder as write; "
        "from conr.models.backbones import parse_backbone as parse; "
        f"write(parse({str(backbone)!r}), 8, Path({str(tmp_path / 'frozen.onnx')!r})); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env={**os.environ})
    assert printed.stdout.strip() == "False"


def test_features_of_frozen_weights_are_those_of_torchvision_with_imagenets_preprocessing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18().eval()
    torch.save(network.state_dict(), tmp_path / "resnet.pth")
    backbone = parse_backbone(f"weights:{tmp_path}/resnet.pth")
    write_frozen_encoder(backbone, SMALLEST, tmp_path / "frozen.onnx")
    session = open_session(tmp_path / "frozen.onnx", "cpu")
    pixels = images(3, SMALLEST)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    prepared = torch.from_numpy((pixels / 255 - mean) / std).permute(0, 3, 1, 2).float()
    network.fc = nn.Identity()
    with torch.no_grad():
        expected = network(prepared).numpy()
    found = np.concatenate(list(infer(session, [pixels])))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    facts = properties(session)
    assert (facts.backbone, facts.preprocessing) == (str(backbone), Preprocessing(size=SMALLEST))
