"""CIFAR-10 from a folder of JPEG files, on a CPU: the whole path on real images, not the paper's accuracy.

    make bench-cifar10       # needs ../shared/data/cifar10-jpeg.tar.gz; about 25 minutes on two CPU cores

Packs all 60,000 images, trains a small network for a few epochs, evaluates, and compares the embeddings with the raw
pixels: NMI of k-means, and purity of the ten nearest neighbours of 5,000 images.
"""

import argparse
import json
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import yaml

from conr.clustering import kmeans
from conr.data.store import open_store
from conr.metrics import label_scores, neighbour_purity

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = ROOT.parent / "shared/data/cifar10-jpeg.tar.gz"
STAGES = ("prepare", "pretrain", "finetune", "extract", "evaluate")
QUERIES, NEIGHBOURS = 5000, 10
SMALL = {
    "network": {"width": 32, "stem": "imagenet", "hidden": 512, "dimension": 128},
    "optimiser": {"base_learning_rate": 0.4, "warmup_epochs": 1, "schedule_epochs": 12, "target_momentum": 0.99},
    "pretrain": {"epochs": 9, "batch_size": 128, "crop_scale": 0.2},
    "finetune": {"epochs": 2},
}


def main() -> None:
    """Run the pipeline in a temporary folder and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, default=ARCHIVE)
    parser.add_argument("--keep", type=Path, help="folder to run in and to leave behind")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(arguments.archive) as archive:
            archive.extractall(folder, filter="data")
        write_params(folder)
        for stage in STAGES:
            started = time.perf_counter()
            subprocess.run(["conr", stage], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            print(f"{stage}: {time.perf_counter() - started:.0f} s", flush=True)
        compare(folder)


def write_params(folder: Path) -> None:
    """The folder preset, made small enough for a CPU."""
    params = yaml.safe_load((ROOT / "presets/folder.yaml").read_text())
    params["prepare"] |= {"path": "cifar10-jpeg", "labels": "parent", "image_size": 32}
    for group, changes in SMALL.items():
        params[group] |= changes
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def compare(folder: Path) -> None:
    """Print NMI and neighbour purity of pixels, BYOL and ConNR."""
    store = open_store(folder / "artifacts/store")
    metrics = json.loads((folder / "results/metrics.json").read_text())
    pixels = store.images.reshape(len(store.images), -1).astype(np.float32) / 255
    raw = label_scores(store.labels, kmeans(pixels, 10, seed=0, restarts=3, spherical=False).assignments)
    rows = {
        "raw pixels": (raw, pixels),
        "BYOL": (metrics["pretrained"], np.load(folder / "artifacts/embeddings/pretrained.npy")),
        "ConNR": (metrics, np.load(folder / "artifacts/embeddings/finetuned.npy")),
    }
    print(f"\n| features | NMI | ACC | purity of {NEIGHBOURS} neighbours |\n|---|---|---|---|")
    for name, (scores, features) in rows.items():
        print(f"| {name} | {scores['nmi']:.3f} | {scores['acc']:.3f} | {purity(features, store.labels):.3f} |")


def purity(features: np.ndarray, labels: np.ndarray) -> float:
    """Share of the nearest neighbours of 5,000 images, in all images, with the image's own label."""
    chosen = np.random.default_rng(0).permutation(len(features))[:QUERIES]
    index = faiss.IndexFlatL2(features.shape[1])
    index.add(features)
    _, found = index.search(features[chosen], NEIGHBOURS + 1)
    return neighbour_purity(labels, found, chosen)


if __name__ == "__main__":
    main()
