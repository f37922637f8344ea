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


def view_scale(epoch: int, resolution: Sequence[Sequence[float]], schedule_epochs: int) -> float:
    """Height and width of the views of an epoch, as a share of those of the images.

    Args:
        epoch: of the schedule, counted from 0.
        resolution: pairs in ascending order: a share of the schedule, and the scale of views from there on.
        schedule_epochs: length of the schedule.
    """
    return [1.0, *(scale for share, scale in resolution if share <= epoch / schedule_epochs)][-1]


def _cosine_decay(progress: float) -> float:
    return (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
