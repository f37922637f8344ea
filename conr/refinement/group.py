"""Group concordance (Eq. 2, 8, 14): each candidate's prediction agrees with the targets of its neighbors."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from conr.losses.concordance import check_shapes
from conr.neighbors.boundary import boundary_ratio, candidate_count, lowest
from conr.neighbors.purity import purity_by_rank
from conr.training.terms import Batch, Term

Search = Callable[[Tensor], Tensor]  # (V, B, D) unit features of V batches → (V, B, k) int64 neighbors in each batch


def group_concordance(
    predictions: Tensor,
    targets: Tensor,
    neighbors: Tensor,
    candidates: Tensor,
    divisor: str = "candidates",
) -> Tensor:
    """Minus the mean cosine between each candidate's prediction and its neighbors' targets (Eq. 14), one direction.

    The mean of cosines with k neighbors is the product with the mean of their k unit targets, so the cost does not
    grow with a second matrix. With every sample a candidate this is Eq. 8; with Euclidean neighbors, Eq. 2.

    Args:
        predictions: (B, D) online predictions q(F_o(v)), unit vectors.
        targets: (B, D) target features F_t(v') of the other view, unit vectors without gradient.
        neighbors: (B, k) int64 indices into the batch. Neighbors are not filtered, only candidates are.
        candidates: (B,) bool, the samples that contribute.
        divisor: "candidates" takes the mean over the candidates (Eq. 14); "batch" divides by the batch size, the
            others counting as 0, as the released code does.

    Returns:
        A scalar in [−1, 1].

    Raises:
        ValueError: shapes disagree or the divisor is unknown.
    """
    check_shapes(predictions, targets)
    size = predictions.shape[0]
    if neighbors.ndim != 2 or neighbors.shape[0] != size:
        raise ValueError(f"neighbors must have shape ({size}, k), got {tuple(neighbors.shape)}")
    if candidates.shape != (size,):
        raise ValueError(f"candidates must have shape ({size},), got {tuple(candidates.shape)}")
    if divisor not in ("candidates", "batch"):
        raise ValueError(f"divisor must be 'candidates' or 'batch', not {divisor!r}")
    mean_target = F.embedding(neighbors, targets).mean(1)
    concordance = (predictions * mean_target).sum(1)
    weights = candidates.to(concordance.dtype)
    total = weights.sum().clamp(min=1) if divisor == "candidates" else size
    return -(concordance * weights).sum() / total


class GroupTerm(Term):
    """Eq. 14 in both directions, a scalar in [−2, 2].

    Neighbors and candidates of a direction come from the target features that it pulls towards.

    Args:
        search: finds the neighbors in a batch.
        batch_size: samples in a batch, B.
        fraction_at: epoch, counted from 0 within the stage → share of candidates f_r (Eq. 12).
        divisor: as for `group_concordance`.
        labels: (N,) int64 on the device, for the log only, −1 where unknown; or None.
        device: of the batches.
    """

    name = "group"

    def __init__(
        self,
        search: Search,
        batch_size: int,
        fraction_at: Callable[[int], float],
        divisor: str,
        labels: Tensor | None,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.search, self.batch_size, self.fraction_at = search, batch_size, fraction_at
        self.divisor, self.labels = divisor, labels
        self.fraction = 1.0
        self._kept = torch.tensor(batch_size, device=device)  # candidates of a direction
        # Directions, sum of their shares of candidates, purities, sum of these.
        self._counts = torch.zeros(4, device=device)

    def start_epoch(self, epoch: int) -> None:
        """Set the share of candidates, and count from zero."""
        self.fraction = self.fraction_at(epoch)
        self._kept.fill_(candidate_count(self.fraction, self.batch_size))
        self._counts.zero_()

    def __call__(self, batch: Batch) -> Tensor:
        """Both directions: from view 1 to view 2, and back."""
        assert batch.centroids is not None
        outputs, traced = batch.outputs, batch.observer.traced
        targets = torch.stack(outputs.unit_targets[::-1])
        neighbors = self.search(targets)
        labels = batch.pseudo_labels.repeat(2)
        ratio = boundary_ratio(targets.flatten(0, 1), labels, batch.centroids).view(2, -1)
        kept = lowest(ratio, self._kept)
        self._count(neighbors, kept, batch.indices)
        losses = []
        for view, prediction in enumerate(outputs.unit_predictions):
            traced("neighbors", neighbors[view])
            traced("boundary ratio", ratio[view])
            traced("candidates", kept[view])
            loss = group_concordance(prediction, targets[view], neighbors[view], kept[view], self.divisor)
            traced("one direction", loss)
            losses.append(loss)
        return losses[0] + losses[1]

    def row(self) -> dict[str, float | None]:
        """The mean share of candidates, and the mean purity of the neighbors if there are labels."""
        directions, kept, purities, pure = self._counts.tolist()
        row: dict[str, float | None] = {"candidate_fraction": kept / directions}
        if self.labels is not None:
            row["neighbor_purity"] = pure / purities if purities else None
        return row

    def _count(self, neighbors: Tensor, kept: Tensor, indices: Tensor) -> None:
        """Add both directions to the epoch's means."""
        shares = kept.float().mean(1)
        counts = [torch.ones_like(shares), shares]
        if self.labels is None:
            counts += [torch.zeros_like(shares)] * 2
        else:
            queries = torch.arange(len(indices), device=indices.device).repeat(2)
            purity = purity_by_rank(self.labels[indices], neighbors.flatten(0, 1), queries)[:, -1].view(2, -1)
            counts += [purity.isfinite().sum(1), purity.nansum(1)]
        for direction in torch.stack([count.double() for count in counts], dim=1):
            self._counts += direction
