"""A long-tailed subset of a balanced data set: class sizes that fall exponentially.

The profile is that of Cui et al., Class-Balanced Loss Based on Effective Number of Samples (CVPR 2019). Labels choose
the data set here; training does not use them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def long_tail_sizes(sizes: Sequence[int], ratio: float) -> list[int]:
    """How many items of each class the subset keeps: of class c the largest size × ratio^(−c / (C − 1)), rounded.

    No class keeps more than it has, or less than one.

    Args:
        sizes: the number of items of each of the C ≥ 2 classes, in the order in which they shrink.
        ratio: size of the first class over that of the last.
    """
    shares = float(ratio) ** (-np.arange(len(sizes)) / (len(sizes) - 1))
    return [max(1, min(size, round(max(sizes) * share))) for size, share in zip(sizes, shares, strict=True)]


def long_tail(labels: Sequence[str], ratio: float) -> NDArray[np.int64]:
    """Which items a long-tailed subset keeps: the same for the same labels; a larger ratio keeps a subset of them.

    Args:
        labels: the class of each item; classes shrink in the sorted order of their names.
        ratio: size of the first class over that of the last.

    Returns:
        Indices of the kept items, ascending.
    """
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(0).permutation(len(classes))
    kept = [
        shuffled[classes[shuffled] == number][:size]
        for number, size in enumerate(long_tail_sizes(sizes.tolist(), ratio))
    ]
    return np.sort(np.concatenate(kept))
