"""Instance concordance (Eq. 1): minus the cosine between a view's prediction and the other view's target.

`symmetrized` combines the two directions: they are *added*, as in BYOL ("computing the asymmetric
losses twice"). The authors' code averages two losses of −2·cos, which is the same number.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from conr.models.siamese import Pair


def instance_concordance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean cosine between each sample's prediction and its own target (Eq. 1), one direction.

    Args:
        predictions: (B, D) online predictions q(F_o(v)), unit vectors.
        targets: (B, D) target features F_t(v') of the other view, unit vectors without gradient.

    Returns:
        A scalar in [−1, 1].

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes(predictions, targets)
    return -(predictions * targets).sum(1).mean()


def symmetrized(one_direction: Callable[[Tensor, Tensor], Tensor], predictions: Pair, targets: Pair) -> Tensor:
    """The sum of a loss from view 1 to view 2 and from view 2 to view 1.

    Args:
        one_direction: a loss of (predictions of a view, targets of the other view).
        predictions: online predictions of view 1 and view 2, each (B, D).
        targets: target features of view 1 and view 2, each (B, D).

    Returns:
        A scalar.
    """
    return one_direction(predictions[0], targets[1]) + one_direction(predictions[1], targets[0])


def check_shapes(predictions: Tensor, targets: Tensor) -> None:
    """Both must be floating-point matrices of one shape.

    Raises:
        ValueError: they are not.
    """
    if predictions.ndim != 2 or predictions.shape != targets.shape:
        raise ValueError(
            "predictions and targets must be matrices of one shape, "
            f"got {tuple(predictions.shape)} and {tuple(targets.shape)}"
        )
    if not torch.is_floating_point(predictions):
        raise ValueError(f"predictions must be floating point, got {predictions.dtype}")
