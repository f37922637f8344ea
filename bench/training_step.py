"""The training step of stage 1 against the ordinary one, end to end: images/s from packed or PIL images to new weights.

    make bench-training-step      # about ten minutes on two CPU cores; on a GPU, add --batch 256

"lightly" is BYOL built from lightly's documented parts (transforms, heads, loss, momentum update): PIL images
in memory, one DataLoader worker per core, eager float32, SGD. "conr" is the loop that `conr pretrain` runs, with its
defaults. Both train the same encoder and heads on the same images with the same views. Each cell is a process of its
own; the first steps (warm-up, and batches that workers made ahead) are not timed. Cells take turns; a figure is the
median.

Then the variants of conr's own step (`Execution`) take turns in one process: images per second of wall time and of
processor time, and how many times as fast as without any of them, the median of the rounds' ratios. The last table is
of the operations that a step launches.
"""

import atexit
import os
import shutil
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from ctypes.util import find_library
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
import torch
from common import TRAININGS, head, in_process, in_turns, line, parser, run
from launches import Convolutions, Launches, OneStep, StepSeenError
from PIL import Image
from torch.utils.benchmark import timer

from conr import Observer, Parameters, Workspace, load_preset
from conr.data.sources import array_source
from conr.data.store import load_manifest
from conr.models.resnet import Encoder
from conr.observer import SILENT
from conr.parameters import FinetuneStage, PretrainStage
from conr.pipeline.pretrain import model_spec, save_pretrained
from conr.refinement.objective import finetune
from conr.training.checkpoints import Checkpoint
from conr.training.compute import machine
from conr.training.execution import Execution
from conr.training.pretraining import pretrain
from conr.training.weights import ModelSpec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"


@dataclass(frozen=True)
class Case:
    """A preset, with changes, on images of random pixels. No epoch ends before the timed steps do."""

    preset: str
    size: int  # of the images, in pixels
    batch: int
    images: int
    skipped: int = 10  # steps
    timed: int = 40
    changes: Mapping[str, Any] = field(default_factory=dict)

    def parameters(self) -> Parameters:
        """The preset with the batch, all threads (what just ended may still keep a core busy) and the changes."""
        batch = {f"{stage}.batch_size": self.batch for stage in TRAININGS}
        threads = {"training.threads": torch.get_num_threads()}
        return load_preset(self.preset).changed({**batch, **threads, **self.changes})

    def variant(self, stage: str, execution: Execution, watch: Observer) -> None:
        """Train fresh networks with a variant of the step, until the watch ends it."""
        asked, images = self.parameters(), random_pixels(self.images, self.size)
        labels = np.random.default_rng(0).integers(0, 10, self.images)
        spec = ModelSpec(**asked.network.layers, framework=asked.framework.name)
        model = spec.build(asked.seed)
        with TemporaryDirectory() as folder:
            checkpoint = Checkpoint(Path(folder))
            if stage == "pretrain":
                pretrain(model, images, labels, PretrainStage.of(asked), checkpoint, watch, execution)
            else:
                refined, first = FinetuneStage.of(asked), asked.pretrain.epochs
                finetune(model, images, labels, refined, first, checkpoint, watch, execution=execution)

    def rates(self, execution: Execution) -> tuple[float, float]:
        """Images per second of wall time and of processor time of pretraining with a variant of the step."""
        try:
            self.variant("pretrain", execution, Stopwatch(self))
        except EnoughStepsError as enough:
            return enough.args
        raise AssertionError("too few steps")

    def launches(self, stage: str, execution: Execution) -> int:
        """Operations that a step launches, with few images and small batches: their number does not depend on these."""
        small, seen = replace(self, images=64, batch=32, changes={**self.changes, "k": 5, "k1": 5, "k2": 2}), Launches()
        with suppress(StepSeenError):
            small.variant(stage, execution, OneStep(seen))
        return seen.count

    def convolutions(self) -> Callable[[], tuple[float, float]]:
        """A call that computes a step's convolutions and nothing else; it returns rates as `rates` does."""
        seen = Convolutions()
        with suppress(StepSeenError):
            self.variant("pretrain", Execution(), OneStep(seen))

        def rates() -> tuple[float, float]:
            started, processor = timer(), time.process_time()
            for _ in range(self.timed):
                seen.repeat()
            images = self.timed * self.batch
            return images / (timer() - started), images / (time.process_time() - processor)

        return rates

    def rate(self, stage: str, watch: "Stopwatch | None" = None) -> float:
        """Images per second of conr's own loop in either stage, with fresh networks."""
        images, parameters = random_images(self.images, self.size), self.parameters()
        with TemporaryDirectory() as folder:
            workspace = Workspace.at(Path(folder))
            workspace.borrow(images, "artifacts/store")
            if stage == "finetune":
                manifest = load_manifest(images.store)
                spec = model_spec(parameters, manifest)
                model = spec.build(parameters.seed)
                save_pretrained(workspace, model, spec, parameters, manifest, [], parameters.pretrain.epochs)
            try:
                run(stage, workspace, parameters, watch or Stopwatch(self))
            except EnoughStepsError as enough:
                return enough.args[0]
        raise AssertionError("too few steps")


# Images, and each network's steps: 16 workers of a GPU's machine make two batches each before the first step ends.
IMAGES, RESNET, SMALL = (60_000, (40, 80), (40, 80)) if ON_GPU else (8192, (1, 2), (8, 12))
SMALLER = {"network.width": 32, "network.stem": "imagenet", "network.hidden": 512, "network.dimension": 128}
FUSED = Execution(fused_optimizer=True)
EXECUTIONS = {
    "plain": Execution(),
    "fused optimizer": FUSED,
    "one forward": Execution(one_forward=True),
    "both": replace(FUSED, one_forward=True),
}
if ON_GPU:
    EXECUTIONS |= {
        "both, recorded": replace(FUSED, one_forward=True, graph=True),
        "both, recorded and compiled": Execution(True, True, True, True),
    }
NETWORKS = {
    "ResNet-18": Case("cifar10", 32, 128, IMAGES, *RESNET),
    "small": Case("cifar10", 32, 128, IMAGES, *SMALL, SMALLER),
    "digits": Case("digits", 8, 256, 1797 * 4, 2, 10),
}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--batch", type=int, default=128)
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    flags.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    given = flags.parse_args()
    print(f"{machine(DEVICE)}, batches of {given.batch} images")
    for table in given.tables:
        print()
        TABLES[table](given)


def print_lightly(given: Namespace) -> None:
    """conr beside lightly, of the networks for images of 32 pixels."""
    print(head("network", "lightly, images/s", "conr, images/s", "ratio"))
    for network in (name for name in given.networks if NETWORKS[name].size == 32):
        case = replace(NETWORKS[network], batch=given.batch)
        cells = {"lightly": partial(in_process, lightly_rate, case), "conr": partial(in_process, case.rate, "pretrain")}
        lightly, conr = (statistics.median(found.results) for found in in_turns(cells, given.repeats).values())
        print(line(network, f"{lightly:,.1f}", f"{conr:,.1f}", f"{conr / lightly:.2f}"), flush=True)


def print_executions(given: Namespace) -> None:
    """The variants of the step."""
    for network in given.networks:
        case = replace(NETWORKS[network], batch=given.batch)
        print_rates(network, {name: partial(case.rates, execution) for name, execution in EXECUTIONS.items()}, given)


def print_convolutions(given: Namespace) -> None:
    """A step's convolutions alone, which are the limit of each variant."""
    for network in given.networks:
        case = replace(NETWORKS[network], batch=given.batch)
        steps = {name: partial(case.rates, execution) for name, execution in EXECUTIONS.items() if not execution.graph}
        print_rates(network, {"convolutions alone": case.convolutions(), **steps}, given)


def print_allocators(given: Namespace) -> None:
    """The plain step in processes of their own, with the C library's memory allocator and with jemalloc."""
    library = find_library("jemalloc")
    if library is None:
        print("jemalloc is not installed (Debian: libjemalloc2)")
        return
    for network in given.networks:
        case = replace(NETWORKS[network], batch=given.batch)
        print_rates(
            network, {"glibc": partial(preloading, "", case), "jemalloc": partial(preloading, library, case)}, given
        )


def print_rates(network: str, calls: Mapping[str, Callable[[], tuple[float, float]]], given: Namespace) -> None:
    """What calls that take turns return: images per second, and how many times as many as the first of them."""
    print(head(network, "images/s, wall", "images/s of processor time", "ratio, wall", "ratio, processor"))
    found = {name: np.array(turns.results) for name, turns in in_turns(calls, given.repeats).items()}
    first, *_ = found.values()
    for name, rates in found.items():
        figures = [f"{rate:,.1f}" for rate in np.median(rates, axis=0)]
        print(line(name, *figures, *(f"{ratio:.2f}" for ratio in np.median(rates / first, axis=0))), flush=True)
    print()


def preloading(library: str, case: Case) -> tuple[float, float]:
    """The rates of the plain step in a process that loads a library before all others."""
    os.environ["LD_PRELOAD"] = library
    try:
        return in_process(case.rates, Execution())
    finally:
        del os.environ["LD_PRELOAD"]


def print_launches(given: Namespace) -> None:
    """The operations that a step launches, by stage."""
    print(head("network", "step", *TRAININGS))
    for network in given.networks:
        for name, execution in EXECUTIONS.items():
            if not execution.graph:
                print(line(network, name, *(NETWORKS[network].launches(stage, execution) for stage in TRAININGS)))


TABLES = {
    "lightly": print_lightly,
    "executions": print_executions,
    "convolutions": print_convolutions,
    "allocators": print_allocators,
    "launches": print_launches,
}


def random_pixels(count: int, size: int) -> np.ndarray:
    """(count, size, size, 3) uint8: no time depends on what the images show."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@cache
def random_images(count: int, size: int) -> Workspace:
    """A workspace with packed images of random pixels, and random labels; it is deleted when the process ends."""
    workspace = Workspace.at(Path(mkdtemp(prefix="conr-bench-")))
    atexit.register(shutil.rmtree, workspace.root, ignore_errors=True)
    labels = np.random.default_rng(0).integers(0, 10, count).tolist()
    source = array_source(random_pixels(count, size), labels, size)
    run("prepare", workspace, load_preset("cifar10").changed({"prepare.image_size": size}), SILENT, source)
    return workspace


class Stopwatch(Observer):
    """Times the steps of a case; raises `EnoughStepsError` after the last."""

    def __init__(self, case: Case) -> None:
        self.case, self.count, self.started, self.processor = case, 0, 0.0, 0.0

    def step_done(self, amount: int = 1, note: str = "") -> None:
        self.count += 1
        if self.count == self.case.skipped:
            self.started, self.processor = timer(), time.process_time()  # the timer waits for a GPU
        elif self.count == self.case.skipped + self.case.timed:
            images, wall = self.case.timed * self.case.batch, timer() - self.started
            raise EnoughStepsError(images / wall, images / (time.process_time() - self.processor))


class EnoughStepsError(Exception):
    """The timed steps are over; holds images per second, of wall time and of processor time."""


def lightly_rate(case: Case) -> float:
    """Images per second of the ordinary loop."""
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform

    settings = case.parameters()
    views, shape = settings.views, settings.network
    colors = {"cj_bright": views.brightness, "cj_contrast": views.contrast, "cj_sat": views.saturation}
    colors |= {"cj_prob": views.jitter, "cj_hue": views.hue, "random_gray_scale": views.grayscale, "gaussian_blur": 0.0}
    crops = {"input_size": case.size, "min_scale": settings.pretrain.crop_scale, "hf_prob": views.flip}
    transform = BYOLTransform(*(BYOLView1Transform(**colors, **crops) for _ in range(2)))

    def backbone() -> torch.nn.Module:
        encoder = Encoder(shape.architecture, shape.width, shape.stem)
        return torch.nn.Sequential(encoder, BYOLProjectionHead(encoder.features, shape.hidden, shape.dimension))

    pictures = Pictures(random_pixels(case.images, case.size), transform)
    processes = {"num_workers": os.cpu_count() or 1, "persistent_workers": True, "pin_memory": ON_GPU}
    loader = torch.utils.data.DataLoader(pictures, case.batch, shuffle=True, drop_last=True, **processes)
    online, target = backbone().to(DEVICE), backbone().to(DEVICE)
    target.load_state_dict(online.state_dict())
    deactivate_requires_grad(target)
    predictor = BYOLPredictionHead(shape.dimension, shape.hidden, shape.dimension).to(DEVICE)
    loss_of, trained = NegativeCosineSimilarity(), [*online.parameters(), *predictor.parameters()]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=5e-4)
    watch = Stopwatch(case)
    try:
        for first, second in loader:
            update_momentum(online, target, m=0.996)
            first, second = first.to(DEVICE), second.to(DEVICE)
            predictions = predictor(online(first)), predictor(online(second))
            with torch.no_grad():
                targets = target(first), target(second)
            loss = 0.5 * (loss_of(predictions[0], targets[1]) + loss_of(predictions[1], targets[0]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # the running loss that every such loop prints
            watch.step_done()
    except EnoughStepsError as enough:
        return enough.args[0]
    raise AssertionError("too few steps")


class Pictures(torch.utils.data.Dataset):
    """Images in memory, given as PIL images: what torchvision's CIFAR10 does."""

    def __init__(self, pixels: np.ndarray, transform: object) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, position: int) -> list[torch.Tensor]:
        return self.transform(Image.fromarray(self.pixels[position]))


if __name__ == "__main__":
    main()
