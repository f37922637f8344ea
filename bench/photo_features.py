"""Features of the images of a set for photos.py, each computed once and kept as an array: (N, D) float32.

- pixels: at most 16 pixels high and wide, in [0, 1].
- colors: the square root of a histogram with 6 × 6 × 6 bins, whose products are Bhattacharyya coefficients.
- Lite0: conr's frozen EfficientNet-Lite0.
- Lite0 + ConNR: the same after ConNR has trained heads on it with four views of each image, by seed.
- BYOL and ConNR: from scratch, by seed, with the preset digits, before and after ConNR.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Turns, run
from numpy.typing import NDArray
from PIL import Image

from conr import Workspace, load_preset
from conr.data.store import open_store
from conr.files import save_array
from conr.models.cluster_heads import load_head
from conr.pipeline.cluster_folder import REFINEMENT
from conr.training.log import read_log

Features = NDArray[np.float32]

PIXELS, COLORS, FROZEN, HEADS, BYOL, CONNR = "pixels", "colors", "Lite0", "Lite0 + ConNR", "BYOL", "ConNR"
EMBEDDINGS = (FROZEN, HEADS, BYOL, CONNR)  # unit vectors
TRAINED = (HEADS, BYOL, CONNR)  # one for each seed
NAMES = (PIXELS, COLORS, *EMBEDDINGS)
BACKBONE = {"network.backbone": "efficientnet-lite0"}
EXACT = {"precision": "float32"}  # of features, so that they are the same on every machine
THUMBNAIL, BINS = 16, 6


def path(folder: Path, features: str, seed: int) -> Path:
    """Where the features of the set in a folder are kept."""
    return folder / "features" / (f"{features}-{seed}.npy" if features in TRAINED else f"{features}.npy")


def compute(folder: Path, features: str) -> dict[str, float]:
    """Compute features that need no seed, and keep them; returns what that took."""
    call = {PIXELS: pixels, COLORS: colors, FROZEN: frozen}[features]
    found, cost = measured(partial(call, Workspace.at(folder)))
    save_array(path(folder, features, 0), found)
    return cost


def pixels(workspace: Workspace) -> Features:
    """Images as vectors, reduced where they are large."""
    images = open_store(workspace.store).images
    if images.shape[1] > THUMBNAIL:
        size = (THUMBNAIL, THUMBNAIL)
        images = np.stack([Image.fromarray(image).resize(size, Image.Resampling.BOX) for image in images])
    return images.reshape(len(images), -1).astype(np.float32) / 255


def colors(workspace: Workspace) -> Features:
    """Histograms of colors, of unit length."""
    images = open_store(workspace.store).images
    weights = np.array([BINS**2, BINS, 1])
    bins = [((image.reshape(-1, 3).astype(np.int64) * BINS // 256) @ weights) for image in images]
    counts = np.stack([np.bincount(found, minlength=BINS**3) for found in bins])
    return np.sqrt(counts / counts.sum(1, keepdims=True)).astype(np.float32)


def frozen(workspace: Workspace) -> Features:
    """Those of the network that conr has ready."""
    size = open_store(workspace.store).manifest.image_size
    run("pretrain", workspace, load_preset("folder").changed({**BACKBONE, **EXACT, "prepare.image_size": size}))
    return np.load(workspace.pretrained.features)


def refine(folder: Path, seeds: Sequence[int]) -> dict[int, dict[str, float]]:
    """Train heads on the frozen features of a set with every seed; returns what each took, views included."""
    workspace = Workspace.at(folder / "heads")
    workspace.borrow(Workspace.at(folder), "artifacts/store")
    manifest, found = open_store(workspace.store).manifest, {}
    changes = {
        **BACKBONE,
        **REFINEMENT,
        "prepare.image_size": manifest.image_size,
        "clusters": len(manifest.class_names),
    }
    parameters = load_preset("folder").changed(changes)
    _, views = measured(lambda: run("pretrain", workspace, parameters.changed(EXACT)))
    features = np.load(workspace.pretrained.features)
    for seed in seeds:
        _, cost = measured(partial(run, "finetune", workspace, parameters.changed({"seed": seed})))
        save_array(path(folder, HEADS, seed), load_head(workspace.finetuned(seed).weights).embed(features))
        found[seed] = {name: cost[name] + views[name] for name in ("wall", "processor")}
        found[seed]["memory"] = max(cost["memory"], views["memory"])
    return found


def train(folder: Path, seed: int) -> Mapping[str, dict[str, float]]:
    """Train on the digits with a seed, and keep the features before and after ConNR; returns what each took.

    A training that was stopped resumes; its seconds are those of all its epochs.
    """
    workspace, parameters = Workspace.at(folder / f"trained/{seed}"), load_preset("digits").changed({"seed": seed})
    workspace.borrow(Workspace.at(folder), "artifacts/store")
    stages = ("pretrain", "finetune", "extract")
    _, cost = measured(lambda: [run(stage, workspace, parameters) for stage in stages])
    before, after = (
        sum(row["seconds"] for row in read_log(log))
        for log in (workspace.pretrained.log, workspace.finetuned(seed).log)
    )
    found = {BYOL: (before, workspace.embeddings()), CONNR: (before + after, workspace.embeddings(seed))}
    for features, (_, embeddings) in found.items():
        save_array(path(folder, features, seed), np.load(embeddings))
    return {features: {**cost, "wall": seconds} for features, (seconds, _) in found.items()}


def measured(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a call returns and takes: seconds on the clock and of the processor, MB on top of what the process has."""
    forget_memory()
    before, turns = memory("VmRSS"), Turns()
    found = turns.measure(call)
    return found, {"wall": turns.wall[0], "processor": turns.processor[0], "memory": max(memory("VmHWM") - before, 0.0)}


def forget_memory() -> None:
    """Give back to the system what earlier calls have freed, and have VmHWM start from now, where that can be done."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def memory(name: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most; 0 where the system does not tell.

    getrusage would say what the process that started this one had.
    """
    status = Path("/proc/self/status")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
    return int(lines.get(name, "0 kB").split()[0]) / 1024
