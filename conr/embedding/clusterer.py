"""An encoder and the clusters of a run as one ONNX graph: uint8 images → cluster, confidence, novelty, embedding.

Only operators that mean the same in every opset since 11 are used, so that they fit behind an encoder of any of these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from conr.clustering.votes import NEAREST, NEIGHBORS, SAME
from conr.embedding.session import INPUT, OUTPUT

OLDEST_OPSET = 11
EMBEDDING, CLUSTER, CONFIDENCE, NOVELTY = "embedding", "cluster", "confidence", "novelty"  # names of the outputs
OUTPUTS = [CLUSTER, CONFIDENCE, NOVELTY, EMBEDDING]

# What follows the embeddings (B, D), in ONNX's text form. The nearest centroid, and one minus the boundary ratio:
BY_CENTROID = """
    exact = Cast <to = 11> (embeddings)
    squares = MatMul (exact * exact, ones)
    products = MatMul (exact, centroids)
"""


@dataclass(frozen=True)
class Memory:
    """What a clusterer knows of the images that were clustered."""
