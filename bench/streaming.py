"""Images that do not fit into memory: what streaming them costs a training.

    make bench-streaming      # about three minutes on two quiet CPU cores

Pretraining on images in memory, memory-mapped, and memory-mapped and read ahead as where they take more than
half of the memory: images per second of wall time and of processor time, in turns in one process, medians; and the
median of the rounds' ratios to images in memory. The file is in the page cache, so that this is the cost of the way,
not of the disk.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
from common import head, in_turns, line, parser
from numpy.typing import NDArray
from training_step import NETWORKS, Case, EnoughStepsError, Stopwatch, random_pixels

from conr.parameters import PretrainStage
from conr.training.checkpoints import Checkpoint
from conr.training.compute import Compute
from conr.training.execution import Execution
from conr.training.pretraining import pretrain
from conr.training.weights import ModelSpec


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    flags = parser(__doc__)
    flags.add_argument("--networks", nargs="*", choices=NETWORKS, default=["small", "digits"])
    flags.add_argument("--turns", type=int, default=5)
    given = flags.parse_args(arguments)
    print(head("network", "images", "images/s, wall", "images/s of processor time", "ratio, wall", "ratio, processor"))
    for network in given.networks:
        print_rates(network, given.turns)


def print_rates(network: str, turns: int) -> None:
    """Rows of a network."""
    case = NETWORKS[network]
    pixels = random_pixels(case.images, case.size)
    with TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", pixels)
        mapped = np.lib.format.open_memmap(Path(folder) / "images.npy", mode="c")
        cells = {
            "in memory": partial(rates, case, pixels, ahead=False),
            "memory-mapped": partial(rates, case, mapped, ahead=False),
            "read ahead": partial(rates, case, mapped, ahead=True),
        }
        found = {name: np.array(turns.results) for name, turns in in_turns(cells, turns, warm_up=1).items()}
    for name, measured in found.items():
        speed = (f"{rate:,.1f}" for rate in np.median(measured, axis=0))
        ratios = (f"{ratio:.3f}" for ratio in np.median(measured / found["in memory"], axis=0))
        print(line(network, name, *speed, *ratios), flush=True)


def rates(case: Case, images: NDArray[np.uint8], ahead: bool) -> tuple[float, float]:
    """Images per second of wall time and of processor time of pretraining."""
    asked = case.parameters()
    model = ModelSpec(**asked.network.layers, framework=asked.framework.name).build(asked.seed)
    with TemporaryDirectory() as folder, mock.patch.object(Compute, "streams", return_value=ahead):
        try:
            stage, checkpoint = PretrainStage.of(asked), Checkpoint(Path(folder))
            pretrain(model, images, None, stage, checkpoint, Stopwatch(case), Execution())
        except EnoughStepsError as enough:
            return enough.args
    raise AssertionError("too few steps")


if __name__ == "__main__":
    main()
