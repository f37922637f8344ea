"""The training step of stage 1 against the ordinary one, end to end: images/s from packed or PIL images to new weights.

    make bench-training-step      # about six minutes on two CPU cores; on a GPU, add --batch 256

"lightly" is BYOL put together from lightly's documented parts (transforms, heads, loss, momentum update): PIL images
in memory, a DataLoader worker a core, eager float32, SGD. "conr" is the loop that `conr pretrain` runs, with its
defaults. Both train the same encoder and heads on the same images with the same views. Each cell is a process of its
own; the first steps (warm-up, and batches that workers made ahead) are not timed. Cells alternate; a figure is the
median.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from conr.parameters import FinetuneStage, Network, PretrainStage
from conr.training.checkpoints import Checkpoint
from conr.training.group import finetune
from conr.training.instance import pretrain
from conr.training.model import build
from stages import params_file

ROOT = Path(__file__).resolve().parents[1]
COUNT, SIZE = 8192, 32
ON_GPU_COUNT = 60_000  # so that no epoch ends in the timed steps
NETWORKS = {  # changes of the CIFAR-10 preset
    "ResNet-18": {},
    "small": {"network.width": 32, "network.stem": "imagenet", "network.hidden": 512, "network.dimension": 128},
}
STEPS = {"ResNet-18": (1, 2), "small": (8, 12)}  # not timed, timed
ON_GPU = 40  # times as many there: its 16 workers have made two batches each before the first step is done
SIDES = ("lightly", "conr")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        side, network = arguments.cell
        print(CELLS[side](network, arguments.batch))
        return
    print(f"torch {torch.__version__}, {device_name()}, batches of {arguments.batch} images of {SIZE} pixels\n")
    print("| network | lightly, images/s | conr, images/s | ratio |\n|---|---|---|---|")
    for network in arguments.networks:
        lightly, conr = compare(network, arguments.batch, arguments.repeats)
        print(f"| {network} | {lightly:,.1f} | {conr:,.1f} | {conr / lightly:.2f} |", flush=True)


def compare(network: str, batch: int, repeats: int) -> list[float]:
    """Median images per second of the ordinary loop and of conr's; each cell is a process of its own."""
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for _, side in itertools.product(range(repeats), SIDES):
        command = [sys.executable, __file__, "--cell", side, network, "--batch", str(batch)]
        rates[side].append(float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
    return [statistics.median(rates[side]) for side in SIDES]


def device_name() -> str:
    """What the table was measured on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def parameters(network: str, batch: int) -> PretrainStage:
    """The CIFAR-10 preset with another network and batch."""
    content = yaml.safe_load((ROOT / "presets/cifar10.yaml").read_text())
    changes = NETWORKS[network] | {"pretrain.batch_size": batch, "pretrain.epochs": 1000}
    return params_file.view_of(PretrainStage, params_file.changed(params_file.validated(content), changes))


def images() -> np.ndarray:
    """Images of random pixels: nothing that is timed depends on what they show."""
    count = ON_GPU_COUNT if torch.cuda.is_available() else COUNT
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


class Stopwatch:
    """Images per second of the timed steps; raises `EnoughStepsError` after the last."""

    def __init__(self, skipped: int, timed: int, batch: int) -> None:
        self.skipped, self.timed, self.batch = skipped, timed, batch
        self.count, self.started = 0, 0.0

    def step(self) -> None:
        """Count a step."""
        self.count += 1
        if self.count == self.skipped:
            self.started = self._now()
        elif self.count == self.skipped + self.timed:
            raise EnoughStepsError(self.timed * self.batch / (self._now() - self.started))

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class EnoughStepsError(Exception):
    """The timed steps are over; holds images per second."""


def stopwatch(network: str, batch: int) -> Stopwatch:
    """The stopwatch of a cell."""
    factor = ON_GPU if torch.cuda.is_available() else 1
    skipped, timed = (steps * factor for steps in STEPS[network])
    return Stopwatch(skipped, timed, batch)


def conr_cell(network: str, batch: int) -> float:
    """Images per second of conr's loop."""
    settings = parameters(network, batch)
    return conr_rate(settings, settings.network, images(), stopwatch(network, batch))


def conr_rate(settings: PretrainStage | FinetuneStage, network: Network, pixels: np.ndarray, watch: Stopwatch) -> float:
    """Images per second of conr's loop in either stage, with fresh networks."""

    @contextmanager
    def progress(description: str, total: int, done: int = 0) -> Iterator[object]:
        yield lambda amount, note="": watch.step() if amount else None

    description = network.model_dump() | {"framework": "byol", "mean": [0.5] * 3, "std": [0.25] * 3}
    model = build(description)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder))
        try:
            if isinstance(settings, PretrainStage):
                pretrain(model, pixels, None, settings, checkpoint, progress)
            else:
                finetune(model, pixels, None, settings, 0, checkpoint, progress)
        except EnoughStepsError as enough:
            return enough.args[0]
    raise AssertionError("too few steps")


def lightly_cell(network: str, batch: int) -> float:
    """Images per second of the ordinary loop."""
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform

    from conr.networks import Encoder

    settings = parameters(network, batch)
    views, shape = settings.views, settings.network
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def transform() -> BYOLView1Transform:
        return BYOLView1Transform(
            input_size=SIZE,
            cj_prob=views.jitter,
            cj_bright=views.brightness,
            cj_contrast=views.contrast,
            cj_sat=views.saturation,
            cj_hue=views.hue,
            min_scale=settings.pretrain.crop_scale,
            random_gray_scale=views.grey,
            gaussian_blur=0.0,
            hf_prob=views.flip,
        )

    dataset = Pictures(images(), BYOLTransform(transform(), transform()))
    loader = torch.utils.data.DataLoader(
        dataset,
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    encoder = Encoder(shape.architecture, shape.width, shape.stem)
    online = torch.nn.Sequential(encoder, BYOLProjectionHead(encoder.features, shape.hidden, shape.dimension)).to(
        device
    )
    predictor = BYOLPredictionHead(shape.dimension, shape.hidden, shape.dimension).to(device)
    target = torch.nn.Sequential(
        Encoder(shape.architecture, shape.width, shape.stem),
        BYOLProjectionHead(encoder.features, shape.hidden, shape.dimension),
    ).to(device)
    target.load_state_dict(online.state_dict())
    deactivate_requires_grad(target)
    loss_of = NegativeCosineSimilarity()
    optimiser = torch.optim.SGD(
        [*online.parameters(), *predictor.parameters()], lr=0.01, momentum=0.9, weight_decay=5e-4
    )
    watch = stopwatch(network, batch)
    try:
        while True:
            for first, second in loader:
                update_momentum(online, target, m=0.996)
                first, second = first.to(device), second.to(device)
                predictions = predictor(online(first)), predictor(online(second))
                with torch.no_grad():
                    targets = target(first), target(second)
                loss = 0.5 * (loss_of(predictions[0], targets[1]) + loss_of(predictions[1], targets[0]))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                loss.item()  # the running loss that every such loop prints
                watch.step()
    except EnoughStepsError as enough:
        return enough.args[0]


class Pictures(torch.utils.data.Dataset):
    """Images in memory, given as PIL images: what torchvision's CIFAR10 does."""

    def __init__(self, pixels: np.ndarray, transform: object) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, position: int) -> list[torch.Tensor]:
        return self.transform(Image.fromarray(self.pixels[position]))


CELLS = {"lightly": lightly_cell, "conr": conr_cell}

if __name__ == "__main__":
    main()
