"""PyTorch networks with given weights → ONNX, once for each machine: the result is kept in the user's cache folder."""

import hashlib
import io
import logging
import os
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime

from conr.embedding.network import CARD
from conr.errors import UserError
from conr.files import atomic_file, sha256_of, write_text
from conr.models.backbones import LITE, SMALLEST, Backbone, Preprocessing, identity, weights_file

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = 2  # raised when the conversion changes, so that files of an earlier one are not used
TOLERANCE = 1e-4  # largest difference from PyTorch, in shares of the largest element


def converted(backbone: Backbone, image_size: int) -> Path:
    """The ONNX file of a network that is given as PyTorch weights, made now if it is not in the cache.

    Args:
        backbone: an EfficientNet-Lite or weights.
        image_size: of the images; smaller ones than `SMALLEST` are enlarged to it.

    Raises:
        UserError: weights or packages are missing or damaged, or the conversion fails.
    """
    size = max(image_size, SMALLEST)
    key = hashlib.sha256(f"{FORMAT} {identity(backbone)} {size}".encode()).hexdigest()[:16]
    path = cache_folder() / f"{backbone.kind}-{size}-{key}.onnx"
    checksum = path.with_suffix(".sha256")
    if (
        path.is_file()
        and checksum.is_file()
        and checksum.read_text(encoding="ascii", errors="replace") == sha256_of(path)
    ):
        return path
    module, card = _build(backbone, size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent} ({error}); set XDG_CACHE_HOME to a folder of yours") from error
    with atomic_file(path) as temporary:
        to_onnx(module, card, temporary)
        made = sha256_of(temporary)
    write_text(checksum, made)
    return path


def cache_folder() -> Path:
    """Where converted networks are kept: conr in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conr" / "backbones"


def to_onnx(module: "nn.Module", card: Preprocessing, path: Path) -> None:
    """Export a network from (B, 3, S, S) images to features, with its card, and compare the file with PyTorch.

    Raises:
        UserError: they differ.
    """
    import torch

    module = module.cpu().eval()
    example = torch.zeros(2, 3, card.size, card.size)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # the exporter prints
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            (example,),
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {CARD: card.model_dump_json()})
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = torch.randn(batch, 3, card.size, card.size, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = module(images).numpy()
        found = session.run(None, {"input": images.numpy()})[0]
        difference = float(np.abs(found - expected).max() / np.abs(expected).max())
        if not difference <= TOLERANCE:
            raise UserError(
                f"the network does not survive its conversion to ONNX: onnxruntime differs from PyTorch by "
                f"{difference:.2g} (accepted: {TOLERANCE:g}). Another version of torch or onnxruntime may convert it"
            )


def _build(backbone: Backbone, size: int) -> "tuple[nn.Module, Preprocessing]":
    if backbone.kind in LITE:
        return _efficientnet_lite(backbone, size)
    from conr.models.resnet_weights import read_resnet

    return read_resnet(backbone).encoder(), Preprocessing(size=size)


def _efficientnet_lite(backbone: Backbone, size: int) -> "tuple[nn.Module, Preprocessing]":
    """The network up to its last block, (B, 320 or 352, H, W), with TensorFlow's padding for this size.

    The convolution to 1,280 channels that follows is made for ImageNet's classes: on most other images, clusters of
    what it takes are better than those of what it gives (docs/lab/features.md).
    """
    import torch
    from efficientnet_lite_pytorch import EfficientNet
    from torch import nn

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = EfficientNet.from_name(backbone.kind, image_size=size)

        def forward(self, images: "Tensor") -> "Tensor":
            network = self.network
            features: Tensor = network._swish(network._bn0(network._conv_stem(images)))
            for block in network._blocks:
                features = block(features)
            return features

    module = Features()
    module.network.load_state_dict(torch.load(weights_file(backbone), weights_only=True, map_location="cpu"))
    card = Preprocessing(
        size=size, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0), scale=1.0, interpolation="bicubic"
    )
    return module, card
