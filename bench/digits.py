"""Digits, default preset, several seeds: BYOL and ConNR against k-means on pixels and UMAP + k-means.

    make bench-digits        # seeds 0-4, about 15 minutes on two CPU cores

Prints a Markdown table. As many seeds run side by side as there are cores, each with one thread. The seeds 0-4 were not
used while the preset was tuned (that was 100 and up). Labels enter the scores only.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import yaml
from sklearn.datasets import load_digits
from umap import UMAP

from conr.clustering import kmeans
from conr.metrics import label_scores

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("prepare", "pretrain", "finetune", "extract", "evaluate")
SCORES = ("acc", "nmi", "ari")


def main() -> None:
    """Run every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    seeds = parser.parse_args().seeds

    rows: dict[str, list[dict[str, float]]] = {"k-means on pixels": [], "UMAP + k-means": [], "BYOL": [], "ConNR": []}
    images, labels = pixels()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for seed, metrics in zip(seeds, pool.map(pipeline, seeds), strict=True):
            plane = UMAP(n_components=10, random_state=seed, n_jobs=1).fit_transform(images)
            rows["k-means on pixels"].append(clustered(images, labels, seed))
            rows["UMAP + k-means"].append(clustered(plane.astype(np.float32), labels, seed))
            rows["BYOL"].append(metrics["pretrained"])
            rows["ConNR"].append(metrics)
            print(f"seed {seed}: BYOL {metrics['pretrained']['acc']}, ConNR {metrics['acc']}", flush=True)

    print(f"\n| ACC, seed | {' | '.join(map(str, seeds))} | median | mean ± std | NMI | ARI |")
    print("|---|" + "---|" * (len(seeds) + 4))
    for name, results in rows.items():
        accuracies = [result["acc"] for result in results]
        cells = [f"{value:.3f}" for value in accuracies]
        cells += [f"{statistics.median(accuracies):.3f}"] + [mean_and_deviation(results, score) for score in SCORES]
        print(f"| {name} | {' | '.join(cells)} |")


def pixels() -> tuple[np.ndarray, np.ndarray]:
    """The images as (1797, 64) float32, and their labels."""
    images, labels = load_digits(return_X_y=True)
    return images.astype(np.float32), labels


def clustered(features: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
    """Scores of plain k-means with as many restarts as the preset has."""
    return label_scores(labels, kmeans(features, 10, seed=seed, restarts=40, spherical=False).assignments)


def pipeline(seed: int) -> dict:
    """Run the five stages with the default preset and a seed; returns the metrics."""
    with tempfile.TemporaryDirectory() as folder:
        params = yaml.safe_load((ROOT / "presets/digits.yaml").read_text()) | {"seed": seed}
        (Path(folder) / "params.yaml").write_text(yaml.safe_dump(params))
        for stage in STAGES:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run(["conr", stage], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        return json.loads((Path(folder) / "results/metrics.json").read_text())


def mean_and_deviation(results: list[dict[str, float]], score: str) -> str:
    """Mean ± sample standard deviation."""
    values = [result[score] for result in results]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    main()
