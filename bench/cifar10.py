"""CIFAR-10 from a folder of image files, on a CPU: the whole path on real images, not the paper's accuracy.

    make bench-cifar10 ARGS='--images FOLDER'       # about 25 minutes on two CPU cores

Packs all 60,000 images, trains a small network for a few epochs, evaluates, and compares the embeddings with the raw
pixels: NMI and ACC of k-means, and purity of the ten nearest neighbors of 5,000 images.
"""

import tempfile
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
from common import Turns, head, line, parser, run

from conr import Workspace, kmeans, label_scores, load_preset
from conr.data.store import open_store
from conr.evaluation.results import Results
from conr.neighbors.purity import neighbor_purity
from conr.parameters import STAGES
from conr.pipeline.params_file import assignments

QUERIES, NEIGHBORS = 5000, 10
CHANGES = """prepare.labels=parent prepare.image_size=32
network.width=32 network.stem=imagenet network.hidden=512 network.dimension=128
optimizer.base_learning_rate=0.4 optimizer.warmup_epochs=1 optimizer.schedule_epochs=12 optimizer.target_momentum=0.99
pretrain.epochs=9 pretrain.batch_size=128 pretrain.crop_scale=0.2 finetune.epochs=2"""  # the preset folder for a CPU


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--images", type=Path, required=True, help="CIFAR-10, in folders named by class")
    flags.add_argument("--keep", type=Path, help="folder to run in, which is not deleted")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        changes = {**assignments(CHANGES.split()), "prepare.path": str(given.images)}
        workspace, parameters, turns = Workspace.at(folder), load_preset("folder-scratch").changed(changes), Turns()
        for stage in STAGES:
            found = turns.measure(partial(run, stage, workspace, parameters))
            print(f"{stage}: {turns.wall[-1]:.0f} s", flush=True)
        compare(workspace, found, parameters.seed)


def compare(workspace: Workspace, results: Results, seed: int) -> None:
    """Print NMI, ACC and neighbor purity of pixels, BYOL and ConNR."""
    store = open_store(workspace.store)
    pixels = store.images.reshape(len(store.images), -1).astype(np.float32) / 255
    raw = label_scores(store.labels, kmeans(pixels, 10, seed=0, n_init=3, spherical=False).assignments)
    rows = {
        "raw pixels": (raw, pixels),
        "BYOL": (results.pretrained.scores, np.load(workspace.embeddings())),
        "ConNR": (results.first.scores, np.load(workspace.embeddings(seed))),
    }
    print("\n" + head("features", "NMI", "ACC", f"purity of {NEIGHBORS} neighbors"))
    chosen = np.random.default_rng(0).permutation(len(pixels))[:QUERIES]
    for name, (scores, features) in rows.items():
        _, found = faiss.knn(features[chosen], features, NEIGHBORS + 1)
        purity = neighbor_purity(*map(torch.from_numpy, (store.labels, found, chosen)))
        print(line(name, *(f"{value:.3f}" for value in (scores["nmi"], scores["acc"], purity))))


if __name__ == "__main__":
    main()
