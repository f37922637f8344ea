"""Learning rate and target momentum as functions of the epoch: nothing to carry over when a run is resumed.

One cosine runs through both stages. An epoch may be fractional (epoch 3.5 is half-way through the fourth), so stages
with different batch sizes share the same curve.
"""

import math


def learning_rate(epoch: float, peak: float, warmup_epochs: int, schedule_epochs: int) -> float:
    """Linear warm-up from 0 to the peak, then a cosine that reaches 0 at the end of the schedule."""
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    span = max(schedule_epochs - warmup_epochs, 1)
    return peak * _cosine_decay((epoch - warmup_epochs) / span)


def target_momentum(epoch: float, start: float, schedule_epochs: int) -> float:
    """Momentum of the moving average: from its start to 1 on a cosine over the whole schedule (BYOL)."""
    return 1 - (1 - start) * _cosine_decay(epoch / schedule_epochs)


def _cosine_decay(progress: float) -> float:
    return (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
