"""MoCo v2 (Chen et al., 2020): a moving-average target, and a queue of past keys as negatives.

Unlike MoCo v2, both views serve as queries and as keys, as everywhere in conr. Each stage starts with a queue of random
directions.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conr.frameworks import Framework
from conr.losses.concordance import symmetrized
from conr.models.siamese import Outputs


class MoCo(Framework):
    """The contrastive loss InfoNCE against a queue."""

    needs_instance_loss = True
    queue: Tensor | None = None

    @staticmethod
    def projector(inputs: int, hidden: int, dimension: int) -> nn.Module:
        """Linear → ReLU → Linear."""
        return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dimension))

    @staticmethod
    def predictor(dimension: int, hidden: int, init_std: float) -> nn.Module:
        """None: the online features are the queries."""
        return nn.Identity()

    def instance_loss(self, outputs: Outputs) -> Tensor:
        """InfoNCE of both directions added; a scalar."""
        return symmetrized(self._one_direction, outputs.unit_predictions, outputs.unit_targets)

    def enqueue(self, outputs: Outputs) -> None:
        """Put the keys of both views in front of the queue; the oldest leave it."""
        keys = torch.cat(outputs.unit_targets)
        queue = self._negatives(keys)
        queue.copy_(torch.cat((keys, queue))[: len(queue)])

    def state(self) -> dict[str, Tensor]:
        """The queue."""
        return {} if self.queue is None else {"queue": self.queue}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the queue."""
        self.queue = state["queue"].clone() if "queue" in state else None  # `enqueue` writes into it

    def _one_direction(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return contrastive_loss(predictions, targets, self._negatives(targets), self.settings.temperature)

    def _negatives(self, like: Tensor) -> Tensor:
        """The queue on the device of other features; at first random directions, as in MoCo.

        They come from a generator of their own, so that nothing else depends on them.
        """
        if self.queue is None:
            noise = torch.randn(self.settings.queue, like.shape[1], generator=torch.Generator().manual_seed(0))
            self.queue = F.normalize(noise, dim=1)
        self.queue = self.queue.to(like.device)
        return self.queue


def contrastive_loss(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE: the cross-entropy of finding each query's own key among it and the negatives.

    Args:
        queries: (B, D) unit vectors.
        keys: (B, D) unit vectors, the key of each query.
        negatives: (Q, D) unit vectors.
        temperature: divides the cosines.

    Returns:
        The mean over the batch, a scalar.
    """
    own = (queries * keys).sum(1, keepdim=True)
    logits = torch.cat((own, queries @ negatives.T), dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


FRAMEWORK = MoCo
