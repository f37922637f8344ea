"""A frozen network as one ONNX file from uint8 images to features, refused unless it computes what its parts do.

Resizing, preprocessing and pooling are inside, so that nothing about the network has to be known to use the file.
"""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from conr.embedding.conversion import converted
from conr.embedding.network import ImageNetwork, open_network
from conr.embedding.nodes import BEFORE, BEHIND, NETWORK, Nodes, declare, pool, preprocess, resize_matrix
from conr.embedding.session import INPUT, Properties, open_session
from conr.errors import UserError, one_line
from conr.files import atomic_file
from conr.models.backbones import KEY, Backbone, Preprocessing, weights_file

FEATURES = "features"  # the output's name
MOST_FEATURES = 8192  # of an image: more are no feature vector, and their covariance would fill memory
CHECKED = 3  # images, as a batch of one and a batch of the others
TOLERANCES: dict[int, float] = {
    TensorProto.FLOAT16: 1e-2
}  # largest difference of an element, in shares of the vector's length
TOLERANCE = 1e-4


def write_frozen_encoder(backbone: Backbone, image_size: int, path: Path) -> Preprocessing:
    """Write a frozen network as an ONNX file that maps (B, S, S, 3) uint8 images to (B, F) float32 features.

    A feature map is averaged over the image, tokens (B, T, C) over all tokens.

    Args:
        backbone: any but scratch.
        image_size: S.
        path: the .onnx file; its properties hold image size, backbone and preprocessing.

    Returns:
        What the network needs its images to look like.

    Raises:
        UserError: the network's file is missing or damaged, or no image network; a package is missing; or the
            written file computes something else than its parts do. Nothing is left under `path` then.
    """
    source = weights_file(backbone)
    if backbone.kind == "onnx":
        network = open_network(source, backbone.output, f"{KEY}: {source}")
    else:
        network = open_network(converted(backbone, image_size), None, f"{KEY} = {backbone}")
    images = np.random.default_rng(0).integers(0, 256, (CHECKED, image_size, image_size, 3), dtype=np.uint8)
    output = network.run(prepare(images, network.preprocessing))
    features = pooled(output, network.preprocessing.layout, network.name)
    if not 2 <= features.shape[1] <= MOST_FEATURES:
        raise UserError(
            f"{network.name}: output {network.output} has {features.shape[1]} features (2 to {MOST_FEATURES:,} are "
            f"accepted); name another output, as in onnx:{source}#OUTPUT"
        )
    model = _compose(network, image_size, features.shape[1], output.ndim)
    facts = Properties(image_size=image_size, backbone=str(backbone), preprocessing=network.preprocessing)
    onnx.helper.set_model_props(model, {"conr": facts.model_dump_json()})
    with atomic_file(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        _check(temporary, network, images, features)
    return network.preprocessing


def prepare(images: NDArray[np.uint8], card: Preprocessing) -> NDArray[np.float64]:
    """(B, 3, H, W) float64: (B, S, S, 3) images as a network needs them, but for its layout and number format."""
    pixels = images.astype(np.float64).transpose(0, 3, 1, 2)
    if images.shape[1] != card.size:
        matrix = resize_matrix(images.shape[1], card.size, card.interpolation)
        pixels = (matrix @ pixels @ matrix.T).clip(0, 255)
    if card.channels == "bgr":
        pixels = pixels[:, ::-1]
    mean, std = (np.reshape(values, (1, 3, 1, 1)) for values in (card.mean, card.std))
    prepared: NDArray[np.float64] = (pixels * card.scale - mean) / std
    return prepared


def pooled(output: NDArray[np.generic], layout: str, name: str) -> NDArray[np.float64]:
    """(B, F) float64 features from a network's output; see `conr.embedding.nodes.pool`.

    Raises:
        UserError: the output has another rank.
    """
    axes = {2: (), 3: (1,), 4: (2, 3) if layout == "nchw" else (1, 2)}
    if output.ndim in axes:
        features: NDArray[np.float64] = output.astype(np.float64).mean(axis=axes[output.ndim])
        return features
    raise UserError(
        f"{name}: its output has the shape {output.shape}; (B, F), (B, T, C) or a feature map is accepted: name "
        "another output, as in onnx:FILE#OUTPUT"
    )


def _compose(network: ImageNetwork, image_size: int, features: int, rank: int) -> onnx.ModelProto:
    model = onnx.compose.add_prefix(network.with_any_batch().model, NETWORK)
    graph, card = model.graph, network.preprocessing
    before, behind = Nodes(graph, BEFORE), Nodes(graph, BEHIND)
    preprocess(before, INPUT, image_size, card, network.kind, f"{NETWORK}{network.input}")
    pool(behind, f"{NETWORK}{network.output}", rank, card.layout, FEATURES)
    before.put_before(graph)
    behind.put_behind(graph)
    del graph.input[:], graph.output[:]
    graph.input.append(declare(INPUT, TensorProto.UINT8, ("batch", image_size, image_size, 3)))
    graph.output.append(declare(FEATURES, TensorProto.FLOAT, ("batch", features)))
    return model


def _check(path: Path, network: ImageNetwork, images: NDArray[np.uint8], expected: NDArray[np.float64]) -> None:
    """Compare a file with the features that its parts gave, in batches of two sizes."""
    session = open_session(path, "cpu")
    accepted = TOLERANCES.get(network.kind, TOLERANCE)
    for part in (slice(1), slice(1, None)):
        batch, features = images[part], expected[part]
        try:
            found = session.run([FEATURES], {INPUT: batch})[0]
            difference = np.abs(found - features).max() / np.linalg.norm(features, axis=1).max()
        except Exception as error:  # onnxruntime raises classes of its own that share no public base
            why, difference = f"it does not run ({one_line(error)})", np.inf
        else:
            why = f"it differs from the network by {difference:.2g} of a feature vector (accepted: {accepted:g})"
        if not difference <= accepted:
            advice = "export the network in evaluation mode"
            if network.fixed_batch:
                advice = f"its batch size is fixed to {network.fixed_batch}: export it with a dynamic batch size"
            raise UserError(f"{network.name} cannot be used on batches: on {len(batch)} images, {why}; {advice}")
