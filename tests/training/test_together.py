"""Several processes train as one does: the same weights and log after 20 steps of both stages."""

from typing import Any

import numpy as np
import pytest
import torch
from small_networks import SmallEncoder, Unsaved, patterned, small_spec
from together import Peers
from torch import Tensor

from conr import frameworks
from conr.parameters import FinetuneStage, Optimizer, PretrainStage, Views
from conr.parameters.groups import Finetune, Framework, Pretrain
from conr.refinement import objective
from conr.refinement.objective import finetune
from conr.training import weights
from conr.training.execution import Execution
from conr.training.log import Row
from conr.training.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT, BATCH, EPOCHS, CLUSTERS = 60, 12, 2, 4  # of a stage: 10 steps
LABELS = np.random.default_rng(1).integers(-1, CLUSTERS, COUNT)


def trained(
    framework: str, bn_group: int, execution: Execution, patience: int = 0
) -> tuple[dict[str, Tensor], list[Row]]:
    """Weights and log after all terms of both stages, by networks that compute in float64; the losses are float32."""
    optimizer = Optimizer(base_learning_rate=0.5, warmup_epochs=1, schedule_epochs=8, target_momentum=0.9)
    shared: dict[str, Any] = {
        "device": "cpu",
        "precision": "float32",
        "framework": Framework(name=framework, queue=40),
        "views": Views(rotation=10.0),
        "optimizer": optimizer,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "Encoder", SmallEncoder)  # every batch normalization costs messages
        model = small_spec(framework=framework, bn_group=bn_group).build(seed=0).double()
    images, own = patterned(np.arange(COUNT) % CLUSTERS), {"epochs": EPOCHS, "batch_size": BATCH, "scattering": 0.1}
    first = PretrainStage(**shared, pretrain=Pretrain(**own, prototypes=CLUSTERS, noise_std=0.01))
    log = pretrain(model, images, LABELS, first, Unsaved(), execution=execution)
    second = FinetuneStage(
        **shared,
        clusters=CLUSTERS,
        k=4,
        k1=5,
        k2=2,
        fr=0.55,
        finetune=Finetune(**own, patience=patience, instance=0.5, boost=0.3, boost_neighbors=3),
    )
    log += finetune(model, images, LABELS, second, EPOCHS, Unsaved(), execution=execution)
    return model.state_dict(), [{k: v for k, v in row.items() if k not in ("seconds", "cluster_sizes")} for row in log]


@pytest.mark.parametrize(
    ("framework", "bn_group", "one_forward", "sizes"),
    [*((name, 0, name == "moco", (2, 3)) for name in frameworks.names()), ("byol", 4, True, (3,))],
)
def test_weights_and_log_are_those_of_one_process(
    peers: Peers, framework: str, bn_group: int, one_forward: bool, sizes: tuple[int, ...]
) -> None:
    execution = Execution(one_forward=one_forward)
    expected, log = trained(framework, bn_group, execution)
    for size in sizes:
        results = peers.call(size, trained, framework, bn_group, execution)
        for found, _ in results:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert results[0][1] == [pytest.approx(row, rel=1e-6, abs=1e-6) for row in log]


def epochs_until_an_early_end() -> int:
    """Of both stages, if any change of the clusters counts as none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "MOVING", 2.0)
        return len(trained("byol", 0, Execution(), patience=1)[1])


def test_all_processes_end_early_after_the_same_epoch(peers: Peers) -> None:
    assert peers.call(2, epochs_until_an_early_end) == [EPOCHS + 1] * 2
