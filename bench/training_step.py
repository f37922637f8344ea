"""The training step of stage 1 against the ordinary one, end to end: images/s from packed or PIL images to new weights.

    make bench-training-step      # about six minutes on two CPU cores; on a GPU, add --batch 512

"lightly" is BYOL put together from lightly's documented parts (transforms, heads, loss, momentum update): PIL images
in memory, two DataLoader workers, eager float32, SGD. "conr" is the loop that `conr pretrain` runs, with its defaults.
Both train the same encoder and heads on the same images with the same views. Each cell is a process of its own; the
first steps (warm-up, and batches that workers made ahead) are not timed. Cells alternate; a figure is the median.
"""

import argparse
import itertools
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

from conr.parameters import PretrainStage
from conr.training.checkpoints import Checkpoint
from conr.training.instance import pretrain
from conr.training.model import build
from stages import params_file

ROOT = Path(__file__).resolve().parents[1]
COUNT, SIZE = 8192, 32
NETWORKS = {  # changes of the CIFAR-10 preset
    "ResNet-18": {},
    "small": {"network.width": 32, "network.stem": "imagenet", "network.hidden": 512, "network.dimension": 128},
}
STEPS = {"ResNet-18": (1, 2), "small": (8, 12)}  # not timed, timed; on a GPU ten times as many
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
        rates: dict[str, list[float]] = {side: [] for side in SIDES}
        for _, side in itertools.product(range(arguments.repeats), SIDES):
            command = [sys.executable, __file__, "--cell", side, network, "--batch", str(arguments.batch)]
            rates[side].append(float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
        lightly, conr = (statistics.median(rates[side]) for side in SIDES)
        print(f"| {network} | {lightly:,.1f} | {conr:,.1f} | {conr / lightly:.2f} |", flush=True)


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
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)


class Stopwatch:
    """Images per second of the timed steps; raises `EnoughStepsError` after the last."""

    def __init__(self, network: str, batch: int) -> None:
        factor = 10 if torch.cuda.is_available() else 1
        self.skipped, self.timed = (steps * factor for steps in STEPS[network])
        self.batch, self.count, self.started = batch, 0, 0.0

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


def conr_cell(network: str, batch: int) -> float:
    """Images per second of conr's loop."""
    settings = parameters(network, batch)
    watch = Stopwatch(network, batch)

    @contextmanager
    def progress(description: str, total: int, done: int = 0) -> Iterator[object]:
        yield lambda amount, note="": watch.step() if amount else None

    description = settings.network.model_dump() | {"framework": "byol", "mean": [0.5] * 3, "std": [0.25] * 3}
    with tempfile.TemporaryDirectory() as folder:
        try:
            pretrain(build(description), images(), None, settings, Checkpoint(Path(folder)), progress)
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
        num_workers=2,
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
    watch = Stopwatch(network, batch)
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
