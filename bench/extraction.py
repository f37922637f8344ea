"""Extraction: onnxruntime in float32 and int8 against PyTorch, in images/s; and the accuracy with int8.

    make bench-extraction      # two minutes on two CPU cores

- eager: what a user would ordinarily run, a DataLoader over the array and the network in evaluation mode.
- channels-last: the same in the memory format that PyTorch prefers, the images sliced from the array without a loader.
- float32, int8: the exported file through `conr.embedding.session.embed`.

All read the same noise from a memory-mapped file and write embeddings to a file; they take turns, the median counts.
These networks are untrained. The accuracy is that of k-means, the mean of five seeds, on a trained network: of the run
in the current folder if it is finished and has labels, else of the digits network after 20 epochs of BYOL, made here.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from common import head, in_turns, line, parser, run
from torch.utils.data import DataLoader, TensorDataset

from conr import ModelSpec, Workspace, kmeans, label_scores, load_preset
from conr.data.store import Store, open_store
from conr.embedding.export import Embedder, export
from conr.embedding.int8 import quantize
from conr.embedding.session import Properties, embed, open_session
from conr.evaluation.scores import MeanStd
from conr.models.siamese import Network
from conr.training.weights import load_weights

BATCH = 256  # of PyTorch
WAYS = ("eager", "channels-last", "float32", "int8")
RATIOS = (("float32", "eager"), ("float32", "channels-last"), ("int8", "float32"))
EPOCHS = 20  # of the network whose accuracy is measured, where no run is finished
CASES = {  # then pixels, images, turns
    "ResNet-18, width 64, 32 px": (ModelSpec(), 32, 256, 5),
    "ResNet-34, width 64, 96 px": (ModelSpec(architecture="resnet34", stem="imagenet"), 96, 128, 3),
    "digits: ResNet-18, width 16, 8 px": (ModelSpec(width=16, hidden=512, dimension=128), 8, 8192, 7),
}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--only", default="", help="the cases whose name holds this; accuracy is one")
    only = flags.parse_args().only
    print(head("images/s", *WAYS, *(" / ".join(pair) for pair in RATIOS)))
    for name, case in CASES.items():
        if only in name:
            rates = speed(*case)
            quotients = [f"{rates[first] / rates[second]:.2f}" for first, second in RATIOS]
            print(line(name, *(f"{rates[way]:,.0f}" for way in WAYS), *quotients), flush=True)
    if only in "accuracy":
        accuracy()


@torch.no_grad()
def speed(spec: ModelSpec, size: int, count: int, turns: int) -> dict[str, float]:
    """Images per second of each of the four ways."""
    network = spec.build(seed=0).target.train()
    network(torch.rand(32, 3, size, size))  # batch-norm statistics that keep activations in range
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "images.npy", Path(folder) / "embeddings.npy"
        np.save(source, np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))
        images = np.load(source, mmap_mode="c")
        export(network, size, Path(folder) / "float32.onnx", Properties())
        quantize(Path(folder) / "float32.onnx", images[:64], Path(folder) / "int8.onnx")
        float32, int8 = (open_session(Path(folder) / f"{name}.onnx", "cpu") for name in ("float32", "int8"))
        embedder = Embedder(copy.deepcopy(network)).eval()
        faster = Embedder(network).eval().to(memory_format=torch.channels_last)
        pixels = torch.from_numpy(images)
        loader = DataLoader(TensorDataset(pixels), batch_size=BATCH)
        ways: dict[str, Callable[[], None]] = {
            "eager": lambda: np.save(target, torch.cat([plain(embedder, batch) for (batch,) in loader])),
            "channels-last": lambda: np.save(target, torch.cat([faster(batch) for batch in pixels.split(BATCH)])),
            "float32": lambda: embed(float32, images, target),
            "int8": lambda: embed(int8, images, target),
        }
        return {name: count / found.seconds for name, found in in_turns(ways, turns, warm_up=1).items()}


def plain(embedder: Embedder, images: torch.Tensor) -> torch.Tensor:
    """The network on images in PyTorch's default memory format."""
    network = embedder.network
    pixels = images.permute(0, 3, 1, 2).float().contiguous() / 255
    return F.normalize(network.projector(network.encoder((pixels - network.mean) / network.std)), dim=1)


def accuracy() -> None:
    """Print the accuracies of k-means on the embeddings of a trained network, in both precisions."""
    print("\n" + head("ACC of", "float32", "int8", "mean cosine similarity"))
    with TemporaryDirectory() as folder:
        name, network, store = trained(Path(folder))
        original, int8 = (Path(folder) / f"{precision}.onnx" for precision in ("float32", "int8"))
        export(network, store.manifest.image_size, original, Properties())
        similarity = quantize(original, store.training_images, int8)
        found = []
        for encoder in (original, int8):
            embed(open_session(encoder, "cpu"), store.images, Path(folder) / "embeddings.npy")
            features, clusters = np.load(Path(folder) / "embeddings.npy"), len(store.manifest.class_names)
            results = [kmeans(features, clusters, seed=seed, n_init=40) for seed in range(5)]
            found.append(MeanStd.of(label_scores(store.labels, result.assignments)["acc"] for result in results).mean)
    print(line(name, f"{found[0]:.4f}", f"{found[1]:.4f}", f"{similarity:.5f}"))


def trained(folder: Path) -> tuple[str, Network, Store]:
    """A trained network and its images: of the finished run in the current folder, else of a short training."""
    here = Workspace.here()
    weights = min(here.refined.glob("*/weights.safetensors"), default=None)  # of one of the seeds
    if weights is not None and (store := open_store(here.store)).labels is not None:
        return f"the run in {Path.cwd()}", load_weights(weights)[0].target, store
    parameters, workspace = load_preset("digits").changed({"pretrain.epochs": EPOCHS}), Workspace.at(folder)
    for stage in ("prepare", "pretrain"):
        run(stage, workspace, parameters)
    network = load_weights(workspace.pretrained.weights)[0].target
    return f"digits after {EPOCHS} epochs of BYOL", network, open_store(workspace.store)


if __name__ == "__main__":
    main()
