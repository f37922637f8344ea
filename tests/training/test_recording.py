"""A step is recorded and replayed: the training is the same. What replays it here is a CPU (`recorder_on_cpu`)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from recorder_on_cpu import CpuRecorder
from small_networks import Unsaved, patterned, small_spec

from conr import frameworks
from conr.errors import Note
from conr.models import resnet
from conr.models.siamese import Siamese
from conr.observer import SILENT, Observer
from conr.parameters import FinetuneStage, Optimizer, PretrainStage, Views
from conr.parameters.groups import Finetune, Framework, Pretrain
from conr.refinement.objective import finetune
from conr.training import loop
from conr.training.execution import Execution
from conr.training.log import Row
from conr.training.pretraining import pretrain
from conr.training.recording import WARM_UP, RecordedStep

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT, BATCH, EPOCHS = 96, 16, 3
LABELS = np.random.default_rng(1).integers(-1, 4, COUNT)
IMAGES = patterned(np.arange(COUNT) % 4)
EVERYTHING: dict[str, dict[str, Any]] = {
    "pretrain": {"scattering": 0.1, "prototypes": 4, "noise_std": 0.01},
    "finetune": {"instance": 0.5, "scattering": 0.1, "boost": 0.3, "boost_neighbors": 3},
}


def train(
    stage: str, framework: str, graph: bool, observer: Observer = SILENT, resolution: Any = ()
) -> tuple[Siamese, list[Row]]:
    """A training of which the first epoch is the warm-up; its rates rise and fall, and so do its candidates."""
    model = small_spec(framework=framework).build(seed=0)
    shared: dict[str, Any] = {
        "device": "cpu",
        "precision": "float32",
        "optimizer": Optimizer(base_learning_rate=0.5, warmup_epochs=1, schedule_epochs=6, target_momentum=0.9),
        "framework": Framework(name=framework, queue=40),
        "views": Views(resolution=list(resolution)),
    }
    own: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, **EVERYTHING[stage]}
    execution = Execution(graph=graph, one_forward=True, fused_optimizer=True)
    if stage == "pretrain":
        parameters = PretrainStage(**shared, pretrain=Pretrain(**own))
        return model, pretrain(model, IMAGES, LABELS, parameters, Unsaved(), observer, execution)
    group = FinetuneStage(**shared, clusters=4, k=4, k1=5, k2=2, fr=0.5, finetune=Finetune(**own))
    return model, finetune(model, IMAGES, LABELS, group, 1, Unsaved(), observer, execution=execution)


def assert_same(ours: tuple[Siamese, list[Row]], theirs: tuple[Siamese, list[Row]]) -> None:
    state = theirs[0].state_dict()
    assert [name for name, tensor in ours[0].state_dict().items() if not torch.equal(tensor, state[name])] == []
    for row, other in zip(ours[1], theirs[1], strict=True):
        assert row | {"seconds": 0} == other | {"seconds": 0}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> CpuRecorder:
    """What records steps in this test."""
    made = CpuRecorder()
    monkeypatch.setattr(loop, "CudaRecorder", lambda: made)
    monkeypatch.setitem(resnet.BLOCKS_PER_STAGE, "resnet18", (1, 1, 1, 1))  # for speed
    return made


@pytest.mark.parametrize("stage", EVERYTHING)
@pytest.mark.parametrize("framework", frameworks.names())
def test_a_replayed_training_is_the_same_for_every_framework_and_with_every_term(
    stage: str, framework: str, recorder: CpuRecorder
) -> None:
    replayed = train(stage, framework, graph=True)
    # In pretraining, what begins after the warm-up makes another record.
    assert recorder.records == (2 if stage == "pretrain" else 1)
    assert recorder.replays == EPOCHS * COUNT // BATCH - recorder.records * WARM_UP
    assert_same(replayed, train(stage, framework, graph=False))


@pytest.mark.parametrize("stage", EVERYTHING)
def test_views_of_each_size_have_a_record_of_their_own(stage: str, recorder: CpuRecorder) -> None:
    resolution = [[0, 0.5], [2 / 6, 0.75], [3 / 6, 1.0]]  # pretraining has two sizes, ConNR three
    replayed = train(stage, "byol", graph=True, resolution=resolution)
    assert recorder.records == 3  # pretraining has one more: after the warm-up
    assert_same(replayed, train(stage, "byol", graph=False, resolution=resolution))


def test_where_recording_fails_a_note_says_why_once_and_the_training_is_the_same(recorder: CpuRecorder) -> None:
    def fail(step: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    recorder.record = fail  # type: ignore[method-assign]
    with pytest.warns(Note, match="cannot be recorded .*operation not permitted") as notes:
        tried = train("pretrain", "byol", graph=True)
    assert len([note for note in notes if note.category is Note]) == 1
    assert_same(tried, train("pretrain", "byol", graph=False))


def test_an_observer_of_tensors_sees_every_step(recorder: CpuRecorder) -> None:
    class Losses(Observer):
        count = 0

        def traced(self, name: str, value: Any) -> None:
            self.count += name == "total loss"

    losses = Losses()
    train("pretrain", "byol", graph=True, observer=losses)
    assert losses.count == EPOCHS * COUNT // BATCH
    assert recorder.records == 0


class Counted:
    """A step of two keys."""

    def __init__(self) -> None:
        self.key, self.made = 0, 0
        self.generators = [torch.Generator().manual_seed(0)]
        self.drawn: list[float] = []

    def __call__(self) -> None:
        self.made += 1
        self.drawn.append(torch.rand((), generator=self.generators[0]).item())


def make_all(step: Callable[[], None]) -> None:
    for _ in range(WARM_UP + 3):
        step()


def test_random_numbers_do_not_depend_on_a_record_that_fails() -> None:
    class Failing(CpuRecorder):
        def record(self, step: Callable[[], None]) -> Callable[[], None]:
            step()  # moves the generators
            raise RuntimeError("a reason")

    step, plain = Counted(), Counted()
    generator = step.generators[0]
    make = RecordedStep(step, Failing())
    with pytest.warns(Note, match="a reason"):
        make_all(make)
    make_all(plain)
    assert step.generators[0] is not generator
    assert step.drawn[:WARM_UP] + step.drawn[WARM_UP + 1 :] == plain.drawn
