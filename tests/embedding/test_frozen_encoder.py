"""A frozen network as one file from uint8 images to features: it computes what a plain float64 program computes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from PIL import Image
from small_encoder import images
from small_networks_onnx import SIZE, weights, write_network

from conr.embedding.frozen import write_frozen_encoder
from conr.embedding.nodes import resize_matrix
from conr.embedding.session import infer, open_session, properties
from conr.models.backbones import Preprocessing, parse_backbone

CARD = Preprocessing(size=SIZE, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), scale=0.01)


def embedded(network: Path, pixels: NDArray[np.uint8], folder: Path, output: str = "") -> NDArray[np.float32]:
    path = folder / "frozen.onnx"
    write_frozen_encoder(parse_backbone(f"onnx:{network}{output}"), pixels.shape[1], path)
    return np.concatenate(list(infer(open_session(path, "cpu"), [pixels])))


def expected(pixels: NDArray[np.uint8], card: Preprocessing) -> NDArray[np.float64]:
    """Resizing, preprocessing, network and pooling, pixel by pixel, in float64."""
    rows = []
    for image in pixels.astype(np.float64):
        resized = np.zeros((card.size, card.size, 3))
        for y, x, channel in np.ndindex(resized.shape):
            resized[y, x, channel] = interpolated(image[:, :, channel], card.size, y, x, card.interpolation)
        total = np.zeros(len(weights()))
        for y, x in np.ndindex(card.size, card.size):
            color = resized[y, x].clip(0, 255)[:: -1 if card.channels == "bgr" else 1]
            total += np.maximum(weights().astype(np.float64) @ ((color * card.scale - card.mean) / card.std), 0)
        rows.append(total / card.size**2)
    return np.array(rows)


def interpolated(channel: NDArray[np.float64], size: int, y: int, x: int, kind: str) -> float:
    ratio = len(channel) / size
    width = max(ratio, 1.0)

    def kernel(distance: float) -> float:
        d = abs(distance)
        if kind == "bilinear":
            return max(1 - d, 0.0)
        return 1.5 * d**3 - 2.5 * d**2 + 1 if d < 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0

    rows = [kernel((i + 0.5 - (y + 0.5) * ratio) / width) for i in range(len(channel))]
    columns = [kernel((i + 0.5 - (x + 0.5) * ratio) / width) for i in range(len(channel))]
    weighted = sum(rows[i] * columns[j] * channel[i, j] for i, j in np.ndindex(channel.shape))
    return float(weighted / (sum(rows) * sum(columns)))


@pytest.mark.parametrize("image_size", [3, 6, 14])
@pytest.mark.parametrize(
    "changes", [{}, {"channels": "bgr"}, {"layout": "nhwc"}, {"interpolation": "bicubic", "layout": "nhwc"}], ids=str
)
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_features_are_those_of_a_plain_float64_program(
    tmp_path: Path, image_size: int, changes: dict[str, Any], rank: int
) -> None:
    card = CARD.model_copy(update=changes)
    network = write_network(
        tmp_path / "network.onnx", layout=card.layout, rank=rank, metadata={"preprocessing": card.model_dump_json()}
    )
    pixels = images(3, image_size)
    found = embedded(network, pixels, tmp_path)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(pixels, card), atol=1e-5)
    facts = properties(open_session(tmp_path / "frozen.onnx", "cpu"))
    assert (facts.image_size, facts.preprocessing) == (image_size, card)


@pytest.mark.parametrize("opset", [8, 11, 13, 18, 21])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16], ids=["float32", "float16"])
def test_networks_of_old_and_new_opsets_are_composed(tmp_path: Path, opset: int, kind: int) -> None:
    card = CARD.model_copy(update={"size": 5})
    metadata = {"preprocessing": card.model_dump_json()}
    network = write_network(tmp_path / "network.onnx", size="side", opset=opset, kind=kind, metadata=metadata, rank=2)
    pixels = images(4, 7)
    tolerance = 1e-5 if kind == TensorProto.FLOAT else 1e-2
    np.testing.assert_allclose(embedded(network, pixels, tmp_path), expected(pixels, card), atol=tolerance)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("source", "target"), [(8, 32), (32, 8), (30, 17), (5, 6)])
def test_images_are_resized_as_pillow_does(interpolation: str, source: int, target: int) -> None:
    pixels = images(1, source)[0] // 2 + 64  # it also clips between its two passes
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    theirs = np.asarray(Image.fromarray(pixels).resize((target, target), filters[interpolation])).astype(np.float64)
    matrix = resize_matrix(source, target, interpolation)
    ours = np.einsum("yi,ijc,xj->yxc", matrix, pixels.astype(np.float64), matrix)
    rounding = 0.5 + 0.5 * np.abs(matrix).sum(axis=1).max()  # theirs is rounded after each of its two passes
    assert np.abs(ours - theirs).max() <= rounding + 0.01
