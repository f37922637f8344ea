"""The encoder as one ONNX file, refused unless it computes what PyTorch computes.

The graph takes uint8 images and returns unit vectors: scaling, normalization and l2-normalization are inside, so
nothing about the data set has to be known to use it.
"""

import io
import logging
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conr.embedding.session import INPUT, OUTPUT, Properties, open_session
from conr.errors import UserError, one_line
from conr.files import atomic_file
from conr.models.siamese import Network, to_pixels

CHECKED_BATCH_SIZES = (1, 2, 7, 64)
TOLERANCE = 1e-4  # largest difference of an element of a unit vector; float32 sums differ by about 1e-6


class Embedder(nn.Module):
    """Encoder and projector as one network from uint8 images to unit vectors."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, H, W, 3) uint8 images to (B, D) float32 unit vectors."""
        return F.normalize(self.network(to_pixels(images)), dim=1)


def export(network: Network, image_size: int, path: Path, properties: Properties) -> None:
    """Write a network as ONNX and check the file against PyTorch.

    Args:
        network: encoder and projector; it is moved to the CPU and to evaluation mode.
        image_size: height and width of the images.
        path: the .onnx file.
        properties: what to store beside the graph.

    Raises:
        UserError: the file computes something else; nothing is left under `path`.
    """
    embedder = Embedder(network.cpu().eval()).eval()
    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # the exporter prints
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            embedder,
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"conr": properties.model_dump_json()})
    with atomic_file(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        check(temporary, network, image_size)


def check(path: Path, network: Network, image_size: int) -> None:
    """Compare an ONNX file with a network on random images, at several batch sizes.

    Raises:
        UserError: they differ, or the file takes other images.
    """
    session = open_session(path, "cpu")
    embedder = Embedder(network).eval()
    generator = np.random.default_rng(0)
    for batch in CHECKED_BATCH_SIZES:
        images = generator.integers(0, 256, (batch, image_size, image_size, 3), dtype=np.uint8)
        with torch.no_grad():
            expected = embedder(torch.from_numpy(images)).numpy()
        try:
            found = session.run([OUTPUT], {INPUT: images})[0]
        except Exception as error:  # onnxruntime raises classes of its own that share no public base
            what = f"{path.name} does not run on {batch} images of {image_size} pixels: {one_line(error)}"
            raise UserError(what) from error
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
        if not difference <= TOLERANCE:
            raise UserError(
                f"{path.name} does not match the network: for {batch} images onnxruntime differs from PyTorch by "
                f"{difference:.2g} (accepted: {TOLERANCE:g}). It is refused; another version of torch or onnxruntime "
                "may export it correctly"
            )
