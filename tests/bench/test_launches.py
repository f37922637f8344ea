"""How many operations a step launches, by the variants of its execution."""

from typing import Any

import launches
import numpy as np
import pytest
import torch
from small_networks import Unsaved, patterned, small_spec

from conr import Observer
from conr.parameters import FinetuneStage, PretrainStage
from conr.parameters.groups import Finetune, Pretrain
from conr.refinement.objective import finetune
from conr.training.execution import Execution
from conr.training.pretraining import pretrain

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("one_thread")]

LABELS = np.arange(64) % 4
IMAGES = patterned(LABELS)
SHARED: dict[str, Any] = {"device": "cpu", "precision": "bfloat16"}


def launched(stage: str, execution: Execution) -> int:
    """Launches of a step of ResNet-18 with the defaults of a stage."""
    train = {"pretrain": pretrain_once, "finetune": finetune_once}[stage]
    seen = launches.Launches()
    with pytest.raises(launches.StepSeenError):
        train(launches.OneStep(seen), execution)
    return seen.count


def pretrain_once(observer: Observer, execution: Execution) -> None:
    parameters = PretrainStage(**SHARED, pretrain=Pretrain(batch_size=16))
    pretrain(small_spec().build(seed=0), IMAGES, LABELS, parameters, Unsaved(), observer, execution)


def finetune_once(observer: Observer, execution: Execution) -> None:
    parameters = FinetuneStage(**SHARED, clusters=4, k=4, k1=5, k2=2, finetune=Finetune(batch_size=16))
    finetune(small_spec().build(seed=0), IMAGES, LABELS, parameters, 1, Unsaved(), observer, execution=execution)


def test_writes_are_launches_and_views_and_allocations_are_none() -> None:
    values = torch.zeros(3, 4)
    with launches.Launches() as counted:
        torch.empty(3).fill_(values.T[0, 0].expand(3).detach().sum())
        values[1].add_(1)
    assert counted.count == 3


@pytest.mark.parametrize(("execution", "passes"), [(Execution(), 6), (Execution(one_forward=True), 3)])
def test_the_convolutions_of_a_step_are_those_of_its_passes(execution: Execution, passes: int) -> None:
    seen = launches.Convolutions()
    with pytest.raises(launches.StepSeenError):
        pretrain_once(launches.OneStep(seen), execution)
    layers = 20  # of ResNet-18; online and target forward, online backward, for each view
    assert len(seen.calls) == passes * layers
    assert sum(func is torch.ops.aten.convolution_backward.default for func, _ in seen.calls) == passes * layers // 3
    with launches.Convolutions() as again:
        seen.repeat()
    assert [func for func, _ in again.calls] == [func for func, _ in seen.calls]


# At commit 512a42b, before steps were made for graphs: the same networks, settings and way to count.
BEFORE = {"pretrain": 1106, "finetune": 1323}


@pytest.mark.parametrize("stage", BEFORE)
def test_a_step_launches_fewer_operations_than_before_and_fewer_again_with_joined_views(stage: str) -> None:
    plain = launched(stage, Execution())
    fast = launched(stage, Execution(one_forward=True, fused_optimizer=True))
    assert fast < plain < BEFORE[stage]
