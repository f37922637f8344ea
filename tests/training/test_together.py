"""Several processes train as one does: the same weights and log after 20 steps."""

import os
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import Unsaved, patterned, small_spec
from together import Peers
from torch import Tensor

from conr import frameworks
from conr.models import resnet
from conr.parameters import FinetuneStage, Optimizer, PretrainStage, Views
from conr.parameters.groups import Finetune, Framework, Pretrain
from conr.refinement.objective import finetune
from conr.training.log import Row
from conr.training.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT, BATCH, EPOCHS, CLUSTERS = 60, 12, 4, 4  # 20 steps
LABELS = np.random.default_rng(1).integers(-1, CLUSTERS, COUNT)


def trained(stage: str, framework: str, bn_group: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], list[Row]]:
    """Weights and log."""
    resnet.BLOCKS_PER_STAGE["resnet18"] = (1, 1, 1, 1)  # for speed
    optimizer = Optimizer(base_learning_rate=0.5, warmup_epochs=1, schedule_epochs=8, target_momentum=0.9)
    shared: dict[str, Any] = {
        "device": "cpu",
        "precision": "float32",
        "framework": Framework(name=framework, queue=40),
        "views": Views(rotation=10.0),
        "optimizer": optimizer,
    }
    model, images = small_spec(framework=framework, bn_group=bn_group).build(seed=0).to(dtype), patterned(np.arange(COUNT) % CLUSTERS)
    if stage == "pretrain":
        own = PretrainStage(**shared, pretrain=Pretrain(epochs=EPOCHS, batch_size=BATCH, scattering=0.1, prototypes=CLUSTERS, noise_std=0.01))
        log = pretrain(model, images, LABELS, own, Unsaved())
    else:
        settings = Finetune(epochs=EPOCHS, batch_size=BATCH, instance=0.5, scattering=0.1, boost=0.3, boost_neighbors=3)
        refined = FinetuneStage(**shared, clusters=CLUSTERS, k=4, k1=5, k2=2, fr=0.55, finetune=settings)
        log = finetune(model, images, LABELS, refined, 2, Unsaved())
    return model.state_dict(), log


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("framework", frameworks.names())
@pytest.mark.parametrize("dtype", [torch.float32])
def test_x(peers: Peers, stage, framework, dtype) -> None:
    weights, log = trained(stage, framework, 0, dtype)
    for size in [2,3]:
        (found, rows), *_ = peers.call(size, trained, stage, framework, 0, dtype)
        worst = max((float((found[n].double()-weights[n].double()).norm()/weights[n].double().norm().clamp(min=1e-30)), n) for n in weights)
        print(size, stage, framework, worst, [abs(a["loss"]-b["loss"]) for a,b in zip(rows,log)], rows[-1].get("cluster_sizes"), log[-1].get("cluster_sizes"))
