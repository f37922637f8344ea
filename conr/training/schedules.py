"""Learning rate, target momentum and size of views as functions of the epoch: a resumed run has nothing to carry over.

One cosine runs through both stages. An epoch may be fractional (epoch 3.5 is half-way through the fourth), so stages
with different batch sizes share the same curve.
"""

import math
from collections.abc import Sequence


def learning_rate(epoch: float, peak: float, warmup_epochs: int, schedule_epochs: int) -> float:
    """Linear warm-up from 0 to the peak, then a cosine that reaches 0 at the end of the schedule."""
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    span = max(schedule_epochs - warmup_epochs, 1)
    return peak * _cosine_decay((epoch - warmup_epochs) / span)


def target_momentum(epoch: float, start: float, schedule_epochs: int) -> float:
    """Momentum of the moving average: from its start to 1 on a cosine over the whole schedule (BYOL)."""
    return 1 - (1 - start) * _cosine_decay(epoch / schedule_epochs)


def view_side(epoch: int, side: int, resolution: Sequence[Sequence[float]], schedule_epochs: int) -> int:
    """Height or width of the views of an epoch, in whole pixels.

    Any size fits the networks: their convolutions are padded, and they take the mean over the last map.

    Args:
        epoch: of the schedule, counted from 0.
        side: of the images, in pixels.
        resolution: pairs in ascending order: from this share of the schedule on, views have this share of the side.
        schedule_epochs: length of the schedule.
    """
    scales = [scale for share, scale in resolution if share <= epoch / schedule_epochs]
    return math.floor(scales[-1] * side + 0.5) if scales else side


def _cosine_decay(progress: float) -> float:
    return (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
