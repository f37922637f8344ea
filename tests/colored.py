"""Images of three colors that a tiny run can cluster in seconds, and its parameters."""

import numpy as np
from numpy.typing import NDArray

import conr
from conr.parameters import Parameters

COUNT, COLORS = 60, ((200, 40, 40), (40, 200, 40), (40, 40, 200))
QUICK = {
    "device": "cpu",
    "precision": "float32",
    "k": 5,
    "k1": 5,
    "network.width": 4,
    "network.hidden": 32,
    "network.dimension": 16,
    "framework.queue": 32,
    "optimizer.warmup_epochs": 1,
    "optimizer.schedule_epochs": 10,
    "pretrain.epochs": 2,
    "pretrain.batch_size": 20,
    "finetune.epochs": 2,
    "finetune.batch_size": 20,
    "evaluate.n_init": 3,
    "evaluate.gallery": 4,
    "evaluate.context": 30,
}


def quick() -> Parameters:
    return conr.load_preset("digits").changed(QUICK)


def colored_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(60, 16, 16, 3) images of three colors with noise, and the (60,) colors."""
    random, colors = np.random.default_rng(0), np.arange(COUNT) % len(COLORS)
    noise = random.normal(scale=10, size=(COUNT, 16, 16, 3))
    return (np.array(COLORS)[colors][:, None, None] + noise).clip(0, 255).astype(np.uint8), colors
