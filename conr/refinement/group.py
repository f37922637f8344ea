"""Group concordance (Eq. 2, 8, 14): each candidate's prediction agrees with the targets of its neighbors."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from conr.losses.concordance import check_shapes, symmetrized
from conr.neighbors.boundary import boundary_ratio, candidate_count, lowest
from conr.neighbors.purity import purity_by_rank
from conr.training.terms import Batch, Term

Search = Callable[[Tensor], Tensor]  # (B, D) unit features → (B, k) int64 neighbors in the batch


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
        """Both directions."""
        assert batch.centroids is not None
        centroids, traced = batch.centroids, batch.observer.traced

        def one_direction(prediction: Tensor, target: Tensor) -> Tensor:
            neighbors = self.search(target)
            traced("neighbors", neighbors)
            ratio = boundary_ratio(target, batch.pseudo_labels, centroids)
            traced("boundary ratio", ratio)
            kept = lowest(ratio, self._kept)
            traced("candidates", kept)
            self._count(neighbors, kept, batch.indices)
            loss = group_concordance(prediction, target, neighbors, kept, self.divisor)
            traced("one direction", loss)
            return loss

        return symmetrized(one_direction, batch.outputs.unit_predictions, batch.outputs.unit_targets)

    def row(self) -> dict[str, float | None]:
        """The mean share of candidates, and the mean purity of the neighbors if there are labels."""
        directions, kept, purities, pure = self._counts.tolist()
        row: dict[str, float | None] = {"candidate_fraction": kept / directions}
        if self.labels is not None:
            row["neighbor_purity"] = pure / purities if purities else None
        return row

    def _count(self, neighbors: Tensor, kept: Tensor, indices: Tensor) -> None:
        """Add a direction to the epoch's means."""
        self._counts[0] += 1
        self._counts[1] += kept.float().mean()
        if self.labels is not None:
            purity = purity_by_rank(self.labels[indices], neighbors)[:, -1]
            self._counts[2] += purity.isfinite().sum()
            self._counts[3] += purity.nansum()
