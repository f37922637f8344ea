"""Extraction: onnxruntime in float32 and int8 against PyTorch, in images a second; and what int8 does to the accuracy.

    make bench-extraction      # two minutes on two CPU cores

- eager: what a user would ordinarily run, a DataLoader over the array and the network in evaluation mode.
- channels-last: the same in the memory format that PyTorch prefers, the images sliced from the array without a loader.
- float32, int8: the exported file through `conr.export.embed`.

All read the same noise from a memory-mapped file and write embeddings to a file; they take turns, the median counts.
These networks are untrained. The accuracy is that of k-means, the mean of five seeds, on a trained network: of the run
in artifacts/ if it has labels, else of the digits network after 20 epochs of BYOL, trained here without labels.
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from conr.clustering import kmeans
from conr.data.store import Store, open_store
from conr.export import Embedder, embed, export, open_session
from conr.metrics import label_scores
from conr.networks import Encoder, Network, mlp
from conr.parameters import PrepareStage, PretrainStage
from conr.progress import silent
from conr.quantisation import quantise
from conr.training.checkpoints import Checkpoint, load_weights
from conr.training.instance import pretrain
from stages import params_file, prepare
from stages.paths import FINETUNED, STORE
from stages.pretrain import fresh_model

ROOT = Path(__file__).resolve().parents[1]
BATCH = 256  # of PyTorch
EPOCHS = 20  # of the network whose accuracy is measured, where no run is finished
# architecture, width, stem, hidden units, dimension; then pixels, images, turns
CASES = {
    "ResNet-18, width 64, 32 px": (("resnet18", 64, "cifar", 4096, 256), 32, 256, 5),
    "ResNet-34, width 64, 96 px": (("resnet34", 64, "imagenet", 4096, 256), 96, 128, 3),
    "digits: ResNet-18, width 16, 8 px": (("resnet18", 16, "cifar", 512, 128), 8, 8192, 7),
}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the cases whose name holds this; accuracy is one")
    only = parser.parse_args().only
    heads = (
        "eager",
        "channels-last",
        "float32",
        "int8",
        "float32 / eager",
        "float32 / channels-last",
        "int8 / float32",
    )
    print(f"| images/s | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for name, (shape, size, count, turns) in CASES.items():
        if only in name:
            eager, fast, float32, int8 = (count / seconds for seconds in speed(shape, size, count, turns))
            ratios = f"{float32 / eager:.2f} | {float32 / fast:.2f} | {int8 / float32:.2f}"
            print(f"| {name} | {eager:,.0f} | {fast:,.0f} | {float32:,.0f} | {int8:,.0f} | {ratios} |", flush=True)
    if only in "accuracy":
        accuracy()


def speed(shape: tuple[str, int, str, int, int], size: int, count: int, turns: int) -> list[float]:
    """Median seconds of each of the four ways."""
    architecture, width, stem, hidden, dimension = shape
    torch.manual_seed(0)
    encoder = Encoder(architecture, width, stem)
    network = Network(encoder, mlp(encoder.features, hidden, dimension)).train()
    with torch.no_grad():
        network(torch.rand(32, 3, size, size))  # batch-norm statistics that keep activations in range
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "images.npy", Path(folder) / "embeddings.npy"
        np.save(source, np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))
        images = np.load(source, mmap_mode="c")
        export(network, size, Path(folder) / "float32.onnx", {})
        quantise(Path(folder) / "float32.onnx", images[:64], Path(folder) / "int8.onnx")
        float32, int8 = (open_session(Path(folder) / f"{name}.onnx", "cpu") for name in ("float32", "int8"))
        embedder = Embedder(copy.deepcopy(network)).eval()
        faster = Embedder(network).eval().to(memory_format=torch.channels_last)
        pixels = torch.from_numpy(images)
        loader = DataLoader(TensorDataset(pixels), batch_size=BATCH)
        ways: list[Callable[[], None]] = [
            lambda: save(target, [plain(embedder, batch) for (batch,) in loader]),
            lambda: save(target, [faster(batch) for batch in pixels.split(BATCH)]),
            lambda: embed(float32, images, target),
            lambda: embed(int8, images, target),
        ]
        return in_turns(ways, turns)


@torch.no_grad()
def in_turns(ways: list[Callable[[], None]], turns: int) -> list[float]:
    """Median seconds of each way; the first turn warms up and does not count."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(turns + 1):
        for way, taken in zip(ways, seconds, strict=True):
            started = time.perf_counter()
            way()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken[1:]) for taken in seconds]


def plain(embedder: Embedder, images: torch.Tensor) -> torch.Tensor:
    """The network on images in PyTorch's default memory format."""
    network = embedder.network
    pixels = images.permute(0, 3, 1, 2).float().contiguous() / 255
    return F.normalize(network.projector(network.encoder((pixels - network.mean) / network.std)), dim=1)


def save(path: Path, rows: list[torch.Tensor]) -> None:
    """Write what PyTorch found."""
    np.save(path, torch.cat(rows).numpy())


def accuracy() -> None:
    """Print the accuracies of k-means on the embeddings of a trained network, in both precisions."""
    print("\n| ACC of | float32 | int8 | mean cosine similarity |\n|---|---|---|---|")
    with TemporaryDirectory() as folder:
        name, network, store = trained(Path(folder))
        original, int8 = (Path(folder) / f"{precision}.onnx" for precision in ("float32", "int8"))
        export(network, store.manifest.image_size, original, {})
        similarity = quantise(original, store.training_images, int8)
        found = []
        for encoder in (original, int8):
            embed(open_session(encoder, "cpu"), store.images, Path(folder) / "embeddings.npy")
            features, clusters = np.load(Path(folder) / "embeddings.npy"), len(store.manifest.class_names)
            results = [kmeans(features, clusters, seed=seed, restarts=40, iterations=100) for seed in range(5)]
            found.append(statistics.mean(label_scores(store.labels, result.assignments)["acc"] for result in results))
    print(f"| {name} | {found[0]:.4f} | {found[1]:.4f} | {similarity:.5f} |")


def trained(folder: Path) -> tuple[str, Network, Store]:
    """A trained network and its images: of the finished run in artifacts/, else of a short training in a folder."""
    if FINETUNED.exists():
        store = open_store(STORE)
        if store.labels is not None:
            return f"the run in {FINETUNED.parents[1].resolve()}", load_weights(FINETUNED)[0].target, store
    preset = params_file.validated(params_file.read(ROOT / "presets/digits.yaml"))
    params = params_file.changed(preset, {"pretrain.epochs": EPOCHS})
    before = Path.cwd()
    os.chdir(folder)  # stages write below the current folder
    prepare.run(params_file.view_of(PrepareStage, params), silent)
    os.chdir(before)
    store = open_store(folder / STORE)
    stage = params_file.view_of(PretrainStage, params)
    model, _ = fresh_model(stage, store.manifest)
    pretrain(model, store.training_images, None, stage, Checkpoint(folder / "checkpoint"))
    return f"digits after {EPOCHS} epochs of BYOL", model.target, store


if __name__ == "__main__":
    main()
