"""A small network as an ONNX file, and images for it."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from conr.embedding.export import export
from conr.embedding.session import Properties
from conr.models.batch_norm import group_batch_norm
from conr.models.heads import mlp
from conr.models.resnet import Encoder
from conr.models.siamese import Network

DIMENSION = 16


def properties_of(size: int) -> Properties:
    return Properties(image_size=size, fit="pad")


def images(count: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def network(stem: str = "cifar", size: int = 8, seed: int = 0, bn_group: int = 0) -> Network:
    """A small network whose batch-norm statistics are those of some batches, not those of a new network."""
    torch.manual_seed(seed)
    projector = mlp(64, 32, DIMENSION)
    result = Network(Encoder("resnet18", 8, stem), projector, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)).train()
    group_batch_norm(result, bn_group)
    with torch.no_grad():
        for _ in range(3):
            result(torch.rand(8, 3, size, size))
    return result.eval()


def features(network: Network, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the network says in PyTorch, written out without the code under test."""
    scaled = torch.from_numpy(batch.astype(np.float32) / 255).permute(0, 3, 1, 2)
    with torch.no_grad():
        rows = network(scaled)
    unit: NDArray[np.float32] = (rows / rows.norm(dim=1, keepdim=True)).numpy()
    return unit


def export_in(folder: Path, stem: str, size: int) -> Path:
    """Export a network that is still in training mode; the tests compare with one of the same seed in evaluation."""
    path = folder / "sub" / "encoder.onnx"
    export(network(stem, size).train(), size, path, properties_of(size))
    return path
