"""Digits, default preset, several seeds: BYOL and ConNR against k-means on pixels and UMAP + k-means.

    make bench-digits        # seeds 0-4, about 12 minutes on two CPU cores

Prints a Markdown table. The seeds 0-4 were not used while the preset was tuned (that was 100 and up). What is finished
is kept (.conr/bench). Labels enter the scores only.
"""

import numpy as np
from rows import head, line, outcomes
from sklearn.datasets import load_digits
from umap import UMAP

from conr.clustering import kmeans
from conr.metrics import label_scores
from stages.experiments import Experiment

SCORES = ["acc", "nmi", "ari"]


def main() -> None:
    """Run every seed and print the table."""
    seeds, found = outcomes(__doc__, {}, [Experiment("ConNR", {})])
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32)
    planes = {seed: UMAP(n_components=10, random_state=seed, n_jobs=1).fit_transform(images) for seed in seeds}
    print(head(seeds, ["mean ± std", "NMI", "ARI"]))
    print(line("k-means on pixels", [clustered(images, labels, seed) for seed in seeds], SCORES))
    print(line("UMAP + k-means", [clustered(planes[seed], labels, seed) for seed in seeds], SCORES))
    print(line("BYOL", [outcome.pretrained for outcome in found["ConNR"]], SCORES))
    print(line("ConNR", [outcome.finetuned for outcome in found["ConNR"]], SCORES))


def clustered(features: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
    """Scores of plain k-means with as many restarts as the preset has."""
    features = features.astype(np.float32)
    return label_scores(labels, kmeans(features, 10, seed=seed, restarts=40, spherical=False).assignments)


if __name__ == "__main__":
    main()
