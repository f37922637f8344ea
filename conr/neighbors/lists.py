"""An index of lists: approximate nearest neighbors, at a cost that grows as the root of the number of samples."""

import faiss
import numpy as np
from numpy.typing import NDArray

LISTS = 4  # lists, times the root of the number of samples
PROBED = 32  # lists that a query reads
TRAINED_ON = 40  # samples per list that the centers of the lists are computed from


def index_of_lists(features: NDArray[np.float32]) -> faiss.IndexIVFFlat:
    """A faiss index (IVF) for (N, D) float32 features, trained on them; they are still to be added."""
    count, dimension = features.shape
    lists = min(round(LISTS * count**0.5), count)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, lists, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(PROBED, lists)
    index.cp.max_points_per_centroid = TRAINED_ON
    index.train(features)
    return index
