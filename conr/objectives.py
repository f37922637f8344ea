"""Instance and group concordance: the two losses (Eq. 1, 2, 8, 14).

Both are minus the cosine between the online network's prediction of one view and the target network's features of
the other. `symmetrised` is the one place where the two directions meet: they are *added*, as in BYOL ("computing
the asymmetric losses twice"). The authors' code averages two losses of −2·cos, which is the same number.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def instance_concordance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean cosine between each sample's prediction and its own target (Eq. 1), one direction.

    Args:
        predictions: (B, D) online predictions q(F_o(v)), of any length.
        targets: (B, D) target features F_t(v') of the other view, of any length, without gradient.

    Returns:
        A scalar in [−1, 1].

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(predictions, targets)
    return -F.cosine_similarity(predictions.float(), targets.float(), dim=1).mean()


def group_concordance(
    predictions: Tensor,
    targets: Tensor,
    neighbours: Tensor,
    candidates: Tensor,
    divisor: str = "candidates",
) -> Tensor:
    """Minus the mean cosine between each candidate's prediction and its neighbours' targets (Eq. 14), one direction.

    The mean of cosines with k neighbours is the product with the mean of their k unit targets, so the cost does not
    grow with a second matrix. With every sample a candidate this is Eq. 8; with Euclidean neighbours, Eq. 2.

    Args:
        predictions: (B, D) online predictions q(F_o(v)), of any length.
        targets: (B, D) target features F_t(v') of the other view, of any length, without gradient.
        neighbours: (B, k) int64 indices into the batch. Neighbours are not filtered, only candidates are.
        candidates: (B,) bool, the samples that contribute.
        divisor: "candidates" takes the mean over the candidates (Eq. 14); "batch" divides by the batch size, the
            others counting as 0, as the released code does.

    Returns:
        A scalar in [−1, 1].

    Raises:
        ValueError: shapes disagree or the divisor is unknown.
    """
    _check_shapes(predictions, targets)
    size = predictions.shape[0]
    if neighbours.ndim != 2 or neighbours.shape[0] != size:
        raise ValueError(f"neighbours must have shape ({size}, k), got {tuple(neighbours.shape)}")
    if candidates.shape != (size,):
        raise ValueError(f"candidates must have shape ({size},), got {tuple(candidates.shape)}")
    if divisor not in ("candidates", "batch"):
        raise ValueError(f"divisor must be 'candidates' or 'batch', not {divisor!r}")
    unit_predictions = F.normalize(predictions.float(), dim=1)
    unit_targets = F.normalize(targets.float(), dim=1)
    mean_target = F.embedding(neighbours, unit_targets).mean(1)
    concordance = (unit_predictions * mean_target).sum(1)
    weights = candidates.to(concordance.dtype)
    total = weights.sum().clamp(min=1) if divisor == "candidates" else size
    return -(concordance * weights).sum() / total


def symmetrised(
    one_direction: Callable[[Tensor, Tensor], Tensor],
    predictions: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
) -> Tensor:
    """The sum of a loss from view 1 to view 2 and from view 2 to view 1; its range is [−2, 2].

    Args:
        one_direction: a loss of (predictions of a view, targets of the other view).
        predictions: online predictions of view 1 and view 2, each (B, D).
        targets: target features of view 1 and view 2, each (B, D).

    Returns:
        A scalar.
    """
    return one_direction(predictions[0], targets[1]) + one_direction(predictions[1], targets[0])


def _check_shapes(predictions: Tensor, targets: Tensor) -> None:
    if predictions.ndim != 2 or predictions.shape != targets.shape:
        raise ValueError(
            "predictions and targets must be matrices of one shape, "
            f"got {tuple(predictions.shape)} and {tuple(targets.shape)}"
        )
    if not torch.is_floating_point(predictions):
        raise ValueError(f"predictions must be floating point, got {predictions.dtype}")
