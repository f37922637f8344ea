"""conr estimate: its table, its sums and warnings, that it leaves nothing behind, and that it is right."""

import math
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from project import IMAGES, run_stages, tiny

from conr.data.sources import array_source
from conr.data.store import open_store
from conr.errors import UserError
from conr.observer import SILENT, Observer
from conr.parameters import Parameters, PrepareStage
from conr.pipeline import estimate as estimating
from conr.pipeline import params_file
from conr.pipeline.estimate import Cost, estimate, report, try_out
from conr.pipeline.prepare import prepare
from conr.pipeline.presets import load_preset
from conr.pipeline.pretrain import model_spec
from conr.pipeline.workspace import Workspace
from conr.stages import beside, cli
from conr.training import loop
from conr.training.checkpoints import SAVING

STAGES = ("pretrain", "finetune")
BATCH, CLASSES, INPUTS, OUTPUTS = 100, 10, 3, 5
PRETENDED = {f"{stage}.batch_size": BATCH for stage in STAGES}
FLOPS = 2 * 2 * BATCH * INPUTS * OUTPUTS  # of a pretended step: the output and the gradient of the weights


class Pretended:
    """A training of known cost, on a clock of its own: seconds a step, an image (first, and examined), a saving."""

    def __init__(self, stage: str, step: float, start: float, end: float, save: float) -> None:
        self.stage, self.step, self.start, self.end, self.save = stage, step, start, end, save
        self.now = 0.0
        self.images: list[int] = []
        self.seen: list[set[int]] = []

    def __call__(self, workspace: Workspace, parameters: Any, observer: Observer = SILENT) -> None:
        settings, store = getattr(parameters, self.stage), open_store(workspace.store)
        assert store.labels is not None
        self.seen.append(set(store.labels.tolist()))
        images = len(store.images)
        self.images.append(images)
        weights = torch.ones(INPUTS, OUTPUTS, requires_grad=True)
        with observer.task("pretend", settings.epochs * (images // settings.batch_size)):
            first = self.now
            self.now += self.start * images
            for epoch in range(settings.epochs):
                started = self.now if epoch else first
                for _ in range(images // settings.batch_size):
                    (torch.ones(settings.batch_size, INPUTS) @ weights).sum().backward()
                    self.now += self.step
                    observer.step_done()
                self.now += self.end * images
                seconds = self.now - started
                self.now += self.save
                observer.epoch_done({"loss": 1.0, "seconds": seconds})


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pretended]:
    """Have a stage pretended, and let the module's clock be its."""

    def install(stage: str, step: float, start: float = 0.0, end: float = 0.0, save: float = 0.0) -> Pretended:
        training = Pretended(stage, step, start, end, save)
        clock = SimpleNamespace(perf_counter=lambda: training.now, time=time.time)
        monkeypatch.setattr(estimating, "time", clock)
        monkeypatch.setattr(estimating, stage, training)
        return training

    return install


@pytest.fixture
def sorted_images(tmp_path: Path) -> Callable[[int], Workspace]:
    """A workspace with so many images, in the order of their classes."""

    def pack(count: int) -> Workspace:
        workspace = Workspace.at(tmp_path / "images")
        labels = np.sort(np.arange(count) % CLASSES).tolist()
        source = array_source(np.zeros((count, 4, 4, 3), np.uint8), labels, 4)
        prepare(workspace, PrepareStage.of(tiny({"prepare.image_size": 4})), source=source)
        return workspace

    return pack


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("count", "step", "prototypes", "tried"),
    [
        (1_050, 0.05, 10, 1_000),  # ten steps of the hundred that five seconds hold: the whole epoch
        (15_000, 0.049, 10, 10_200),
        (5_000, 3.0, 10, 200),  # slower than the budget: what the first trial says must do
        (7_000, 0.1, 5_950, 6_000),  # k-means needs that many
        (250, 0.05, 10, 200),
        (150, 0.05, 10, 200),  # an epoch of one step: some images are there twice
    ],
)
def test_a_few_steps_predict_the_whole_training(
    stage: str,
    count: int,
    step: float,
    prototypes: int,
    tried: int,
    pretend: Callable[..., Pretended],
    sorted_images: Callable[[int], Workspace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workspace, training = sorted_images(count), pretend(stage, step=step, start=3e-3, end=2e-4, save=0.3)
    changes = {f"{stage}.epochs": 7, "optimizer.schedule_epochs": 20}
    changes |= {"pretrain.prototypes": prototypes} if stage == "pretrain" else {"clusters": prototypes}
    parameters = tiny({**PRETENDED, **changes})
    cost = try_out(stage, workspace, parameters, tmp_path / "trials", SILENT, time.time())
    assert (cost.images, cost.batch_size, training.images[-1]) == (count, BATCH, tried)
    assert (cost.step, cost.save) == (pytest.approx(step), pytest.approx(0.3))
    assert (cost.start, cost.end) == (pytest.approx(3e-3 * count), pytest.approx(2e-4 * count))
    assert (cost.epochs, cost.examined, cost.runs, cost.flops) == (7, 7, 1, FLOPS)
    assert all(seen == set(range(CLASSES)) for seen in training.seen), "a sorted store is sampled all over"

    monkeypatch.setattr(estimating, "SAVING", math.inf)  # as the pretended training saves after every epoch
    begun = training.now
    training(workspace, parameters)
    assert replace(cost, start_up=0.0).seconds == pytest.approx(training.now - begun)


def test_the_learning_rate_of_trials_is_next_to_none_and_nothing_waits_for_a_warm_up(
    pretend: Callable[..., Pretended],
    sorted_images: Callable[[int], Workspace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Any] = []
    training = pretend("finetune", step=0.05)

    def watched(workspace: Workspace, parameters: Any, observer: Observer) -> None:
        given.append(parameters)
        training(workspace, parameters, observer)

    monkeypatch.setattr(estimating, "finetune", watched)
    workspace = sorted_images(400)
    parameters = tiny({**PRETENDED, "framework.name": "moco", "finetune.instance": 1.0, "framework.queue": 300})
    cost = try_out("finetune", workspace, parameters.changed({"seeds": [3, 4]}), tmp_path, SILENT, time.time())
    assert cost.runs == 2
    assert [own.optimizer.warmup_epochs for own in given] == [0, 0]
    assert all(own.optimizer.base_learning_rate < 1e-6 for own in given)
    assert [own.framework.queue for own in given] == [199, 300], "fewer than the images of the trial"


@pytest.mark.parametrize(("stage", "expected"), [("pretrain", (3 * 0.25 + 2 * 0.5) / 5), ("finetune", (0.5 + 1) / 2)])
def test_steps_with_views_of_each_size_are_timed_and_count_as_often_as_they_come(
    stage: str,
    expected: float,
    pretend: Callable[..., Pretended],
    sorted_images: Callable[[int], Workspace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = pretend(stage, step=1.0)

    def watched(workspace: Workspace, parameters: Any, observer: Observer) -> None:
        assert parameters.finetune.patience == 0, "fresh networks stand still at this learning rate"
        ((start, training.step),) = parameters.views.resolution  # seconds, in the place of a size
        assert start == 0
        training(workspace, parameters, observer)

    monkeypatch.setattr(estimating, stage, watched)
    # Of eight epochs of the schedule pretraining has the first five, ConNR the next two.
    changes = {"pretrain.epochs": 5, "finetune.epochs": 2, "optimizer.schedule_epochs": 8, "finetune.patience": 1}
    changes["views.resolution"] = [[0, 0.25], [3 / 8, 0.5], [6 / 8, 1.0]]
    cost = try_out(stage, sorted_images(400), tiny({**PRETENDED, **changes}), tmp_path, SILENT, time.time())
    assert cost.step == pytest.approx(expected)
    assert cost.flops == FLOPS


@pytest.mark.parametrize(("save", "share"), [(0.1, 0.1), (7.0, SAVING * 5.5)])
def test_the_sums_of_a_cost(save: float, share: float) -> None:
    cost = Cost(
        images=1_050,
        batch_size=100,
        epochs=40,
        examined=20,
        runs=3,
        flops=3_000,
        step=0.5,
        save=save,
        start=4.0,
        end=1.0,
        disk=1_000,
        memory=1_000,
        start_up=6.0,
    )
    assert cost.steps == 10
    assert cost.epoch_seconds == pytest.approx(10 * 0.5 + 1.0 / 2 + share)
    assert cost.seconds == pytest.approx(6.0 + 3 * (4.0 + 40 * (5.0 + 0.5 + share)))


def test_without_epochs_of_finetune_only_the_pretraining_is_timed(workspace: Workspace) -> None:
    text = beside.estimate(workspace, tiny({"pretrain.epochs": 5, "finetune.epochs": 0}), SILENT)
    assert cells(text, "pretrain")[6] == "1 × 5"
    assert "finetune" not in text.split("\ntotal")[0]
    assert " for one pretraining, on the CPU" in cells(text, "total")[1]


def cells(text: str, row: str) -> list[str]:
    """The cells of a row of the table."""
    line = next(line for line in text.splitlines() if line.startswith(f"{row} "))
    return re.split(r"\s{2,}", line.strip())


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_table_says_what_training_takes_and_nothing_is_left_behind(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(workspace.root)
    text = beside.estimate(workspace, tiny({"pretrain.epochs": 5, "finetune.epochs": 2, "seeds": [3, 4]}), SILENT)
    assert contents(workspace.root) == before
    assert list(workspace.scratch.iterdir()) == []
    stage, images, steps, *_, epochs, _, memory, gpu = cells(text, "pretrain")
    assert (stage, images, steps, epochs, gpu) == ("pretrain", "1,797", "14", "1 × 5", "–")
    assert memory.endswith("B")
    stage, images, steps, *_, epochs, _, _, _ = cells(text, "finetune")
    assert (stage, images, steps, epochs) == ("finetune", "1,797", "7", "2 × 2")
    assert "for one pretraining and 2 of finetune, on the CPU" in cells(text, "total")[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["pretrain.epoch=3"], "unknown key pretrain.epoch; did you mean pretrain.epochs?"),
        (["host.framework=moco"], "the key host.framework is called framework.name now; rename it"),
        (["k1"], "--set k1 should be KEY=VALUE"),
        (["k1=[1"], "[1 is not valid YAML"),
        (["k1=9", "prepare.image_size=16"], "--set prepare.image_size: the images are timed as they are packed"),
        (["k1=300"], "k1 = 300 is larger than finetune.batch_size = 256"),
        (["fr=2"], "fr = 2 should be less than or equal to 1"),
    ],
)
def test_settings_pass_the_checks_of_the_file(
    settings: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = tiny()
    monkeypatch.setattr(params_file, "read", lambda: parameters)
    monkeypatch.setattr(cli, "run", lambda *_: pytest.fail("nothing was refused"))
    with pytest.raises(UserError, match=re.escape(message)):
        cli.app(["estimate", *(part for text in settings for part in ("--set", text))], standalone_mode=False)


def test_settings_change_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    parameters = tiny()
    expected = tiny({"pretrain.epochs": 5, "seeds": [3, 4]})
    monkeypatch.setattr(params_file, "read", lambda: parameters)
    monkeypatch.setattr(cli, "run", lambda *arguments: given.extend(arguments))
    cli.app(["estimate", "-S", "pretrain.epochs=5", "--set", "seeds=[3, 4]"], standalone_mode=False)
    assert given[-1] == expected


def test_parameters_that_do_not_go_with_the_images_are_refused_before_anything_is_tried(workspace: Workspace) -> None:
    with pytest.raises(UserError, match=r"clusters = 1798 is larger than the number of images"):
        estimate(workspace, tiny({"clusters": 1798}))
    assert not workspace.scratch.exists()


def test_without_a_store_it_says_what_to_run(tmp_path: Path) -> None:
    empty = Workspace.at(tmp_path)
    with pytest.raises(UserError, match=f"{empty.store} does not exist; run conr prepare first"):
        estimate(empty, tiny())
    assert not empty.scratch.exists()


def convolution(inputs: int, outputs: int, kernel: int, size: int) -> float:
    """Operations of a convolution of one image to (outputs, size, size)."""
    return 2.0 * inputs * outputs * kernel**2 * size**2


def forward_by_hand(width: int, size: int) -> float:
    """Operations of a ResNet-18 with the stem for small images, behind its stem, forth, for one image."""
    total = 4 * convolution(width, width, 3, size)
    for _ in range(3):
        size = (size + 1) // 2
        total += convolution(width, 2 * width, 3, size) + 3 * convolution(2 * width, 2 * width, 3, size)
        total += convolution(width, 2 * width, 1, size)
        width *= 2
    return total


def test_operations_of_a_step_and_the_disk_are_those_of_a_count_by_hand(
    packed: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr(estimating, "BUDGET", 0.0)
    width, hidden, dimension, side = 8, 64, 32, 8
    parameters = tiny({"network.width": width, "network.hidden": hidden, "network.dimension": dimension})
    cost = try_out("pretrain", packed, parameters, tmp_path, SILENT, time.time())
    stem, rest = convolution(3, width, 3, side), forward_by_hand(width, side)
    projector, predictor = 2.0 * hidden * (8 * width + dimension), 2.0 * hidden * (dimension + dimension)
    # A view: once forth through the target; once forth and twice back through the online network and the predictor,
    # but an image needs no gradient.
    view = 4 * (rest + projector) + 3 * stem + 3 * predictor
    by_hand = 2 * view * parameters.pretrain.batch_size
    assert cost.flops == pytest.approx(by_hand, rel=0.01)  # the views have small products, too
    model = model_spec(parameters, open_store(packed.store).manifest).build()
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    trained = [*model.online.parameters(), *model.predictor.parameters()]
    assert cost.disk == 2 * weights + sum(tensor.nbytes for tensor in trained)  # a checkpoint holds momentum, too
    assert cost.device_memory is None


def trial(seconds_a_step: float, epochs: int, runs: int = 1) -> Cost:
    """A trial of round numbers: 10 steps an epoch, and nothing but steps."""
    return Cost(
        images=1_000,
        batch_size=100,
        epochs=epochs,
        examined=epochs,
        runs=runs,
        flops=2_000_000_000,
        step=seconds_a_step,
        save=0.0,
        start=0.0,
        end=0.0,
        disk=70_000_000,
        memory=2_000_000_000,
    )


def test_the_total_counts_every_seed_of_finetune_and_pretrain_once() -> None:
    costs = {"pretrain": trial(0.5, 100), "finetune": trial(0.25, 60, runs=3)}
    lines = "\n".join(report(costs, "the CPU (threads: 2)", free=10**12, memory=10**10))
    assert cells(lines, "pretrain")[1:] == ["1,000", "10", "2", "4", "5", "1 × 100", "0:08:20", "2.0 GB", "–"]
    assert cells(lines, "finetune")[1:] == ["1,000", "10", "2", "8", "2.5", "3 × 60", "0:07:30", "2.0 GB", "–"]
    assert cells(lines, "total")[1].startswith("0:15:50 (h:min:s) for one pretraining and 3 of finetune, on the CPU")
    assert cells(lines, "disk")[1].startswith("280.0 MB for weights and checkpoints; 1.0 TB are free")  # 4 × 70
    assert "Warning" not in lines


def test_long_times_have_days() -> None:
    costs = dict.fromkeys(STAGES, trial(50.0, 360))
    lines = "\n".join(report(costs, "the CPU", free=10**12, memory=10**10))
    assert cells(lines, "pretrain")[7] == "2 days, 2:00:00"


def test_too_little_disk_or_memory_is_a_warning() -> None:
    costs = {"pretrain": replace(trial(1, 1), memory=10**9), "finetune": trial(1, 1)}
    lines = report(costs, "the CPU", free=100_000_000, memory=1_500_000_000)
    assert [line for line in lines if line.startswith("Warning")] == [
        "Warning: training needs 140.0 MB of disk, 100.0 MB are free; free some first",
        "Warning: finetune needs 2.0 GB of memory, this machine has 1.5 GB; lower finetune.batch_size or network.width",
    ]


def test_the_memory_of_a_gpu_has_a_column_of_its_own() -> None:
    costs = {"pretrain": replace(trial(1, 1), device_memory=3_210_000_000)}
    costs["finetune"] = replace(costs["pretrain"], device_memory=400_000_000)
    head, *lines = report(costs, "a GPU", free=10**12, memory=10**10)
    assert head.endswith("GPU memory")
    assert lines[0].endswith("3.2 GB")
    assert lines[1].endswith("400.0 MB")


def seconds_of(stage: str, parameters: Parameters, packed: Workspace, folder: Path) -> float:
    """Processor seconds that a stage really takes in this process; finetune begins with the first pretraining."""
    workspace = Workspace.at(folder)
    workspace.borrow(packed, "artifacts/store")
    if stage == "finetune":
        workspace.borrow(Workspace.at(folder.with_name("pretrain 0")), "artifacts/pretrain")
    started = time.process_time()
    run_stages(workspace, parameters, stage)
    return time.process_time() - started


def test_an_estimate_of_the_digits_is_within_a_quarter_of_what_they_take(
    packed: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr(estimating, "BUDGET", 1.0)  # a part of the images
    # Processor time of one thread: what else runs on the machine does not count. bench/estimate.py compares wall time.
    clock = SimpleNamespace(perf_counter=time.process_time, time=time.time)
    for module in (estimating, loop):
        monkeypatch.setattr(module, "time", clock)
    changes = {"device": "cpu", "network.width": 8, "pretrain.epochs": 3, "finetune.epochs": 3}  # a quarter of the work
    parameters = load_preset("digits").changed(changes)
    for stage in STAGES:
        ratios = []
        for attempt in range(3):
            trials = tmp_path / f"estimate {attempt}"
            cost = try_out(stage, packed, parameters, trials, SILENT, time.time())
            assert all(len(open_store(store).images) < IMAGES for store in trials.glob("*/artifacts/store"))
            taken = seconds_of(stage, parameters, packed, tmp_path / f"{stage} {attempt}")
            ratios.append(replace(cost, start_up=0.0).seconds / taken)
        # The speed of a core changes from one minute to the next: what is compared was measured at one time.
        assert statistics.median(ratios) == pytest.approx(1, rel=0.25), f"{stage}: {ratios}"
