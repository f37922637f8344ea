"""The nearest rows by inner product, with ties settled the same way on every device."""

import torch
from torch import Tensor

LOW_BITS = 2**32 - 1
BLOCK = 2**20  # scores that are held at a time: enough to keep a device busy, few enough to stay in a cache


def nearest(vectors: Tensor, k: int, *, self_first: bool) -> Tensor:
    """Indices of the k largest inner products of each row with all rows of its batch, block by block.

    Ties go to the sample itself, then to the lower index. With `self_first` the sample itself comes first even if
    another one scores higher.

    `torch.topk` leaves the order of ties to the device, and reciprocal encodings are full of ties. A key
    combines a score and an index, so no two keys are equal.

    Args:
        vectors: (V, B, D), of V batches.
        k: at most B.
        self_first: see above.

    Returns:
        (V, B, k) int64.
    """
    count, size, _ = vectors.shape
    found = torch.empty(count, size, k, dtype=torch.int64, device=vectors.device)
    rows = max(1, BLOCK // (count * size))
    for first in range(0, size, rows):
        scores = vectors[:, first : first + rows] @ vectors.mT
        diagonal = scores.diagonal(first, 1, 2)
        above = torch.full_like(diagonal, torch.inf)
        diagonal.copy_(above if self_first else torch.nextafter(diagonal, above))
        found[:, first : first + rows] = largest(scores, k)
    return found


def largest(scores: Tensor, k: int) -> Tensor:
    """(…, k) columns of the k largest scores of each row, (…, C); of equal ones the lower column first."""
    if scores.dtype == torch.float64:  # does not fit into a key; only tests need it
        return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    bits = (scores + 0.0).view(torch.int32)  # + 0.0: the two zeros become one
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats order backwards
    # The score above, the column counted down below.
    keys = (ascending.long() << 32) + (LOW_BITS - torch.arange(scores.shape[-1], device=scores.device))
    return LOW_BITS - (keys.topk(k, dim=-1).values & LOW_BITS)
