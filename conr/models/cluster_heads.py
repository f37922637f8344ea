"""Linear cluster heads on frozen features: what they are built from, what they compute, and their file."""

import math
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from conr.errors import UserError, one_line
from conr.files import atomic_file

BLOCK = 4096  # features that are embedded at a time


class HeadSpec(BaseModel):
    """What a head is built from.

    Attributes:
        inputs: length of the features, D.
        clusters: K.
        heads: L.
        temperature: of their softmax, on cosines.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    inputs: int = Field(ge=1)
    clusters: int = Field(ge=2)
    heads: int = Field(default=16, ge=1)
    temperature: float = Field(default=0.1, gt=0)


class Head(nn.Module):
    """L linear cluster heads. What is clustered is their probabilities' square roots, side by side.

    Each head's square roots have unit length, and the inner product of two samples is the mean over the heads of the
    Bhattacharyya coefficient: 1 where all heads put them into the same clusters, 0 where none does.

    Args:
        spec: what it is built from.
        generator: of the initial weights, random directions; None if they are overwritten anyway.
    """

    def __init__(self, spec: HeadSpec, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.randn(spec.heads, spec.inputs, spec.clusters, generator=generator))

    @property
    def prototypes(self) -> Tensor:
        """(L, D, K): for each head a unit vector per cluster, without gradient."""
        return F.normalize(self.weight.detach(), dim=1)

    def probabilities(self, features: Tensor) -> Tensor:
        """Cluster probabilities of (B, D) unit vectors by each head, (B, L, K)."""
        prototypes = F.normalize(self.weight, dim=1).permute(1, 0, 2).flatten(1)
        cosines = (features @ prototypes).view(-1, self.spec.heads, self.spec.clusters)
        return F.softmax(cosines / self.spec.temperature, dim=2)

    @torch.no_grad()
    def embed(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """`forward` for (N, D) arrays, in blocks."""
        blocks = [self(torch.from_numpy(features[first : first + BLOCK])) for first in range(0, len(features), BLOCK)]
        found: NDArray[np.float32] = torch.cat(blocks).numpy()
        return found

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, D) unit vectors to (B, L · K) unit vectors."""
        return self.probabilities(features).sqrt().flatten(1) / math.sqrt(self.spec.heads)


def save_head(path: Path, head: Head) -> None:
    """Write a head as .safetensors, with its spec."""
    metadata = {"conr": head.spec.model_dump_json()}
    with atomic_file(path) as temporary:
        temporary.write_bytes(safetensors.torch.save({"weight": head.weight.detach()}, metadata=metadata))


def load_head(path: Path) -> Head:
    """Rebuild the head that `save_head` wrote.

    Raises:
        UserError: the file is missing, damaged or not one of ours.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            head = Head(HeadSpec.model_validate_json(file.metadata()["conr"]))
            head.load_state_dict({"weight": file.get_tensor("weight")})
    except (OSError, SafetensorError, ValidationError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} is missing or no whole file of heads ({one_line(error)}); train them again") from error
    return head.requires_grad_(False)
