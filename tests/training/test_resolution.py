"""Smaller views at first: which size an epoch has, what its views are, and that nothing else changes."""

import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from project import tiny
from small_networks import SmallEncoder, Unsaved, patterned, small_spec
from torch import Tensor

from conr.data.store import load_manifest
from conr.errors import UserError
from conr.models.siamese import Siamese
from conr.observer import SILENT, Observer
from conr.parameters import FinetuneStage, Optimizer, PretrainStage, Views
from conr.parameters.groups import Finetune, Pretrain
from conr.pipeline.checks import check_data
from conr.pipeline.workspace import Workspace
from conr.refinement.objective import finetune
from conr.stages.integers import pairs
from conr.training import checkpoints, weights
from conr.training.checkpoints import Checkpoint
from conr.training.execution import Execution
from conr.training.log import Row
from conr.training.pretraining import pretrain
from conr.training.recipe import Recipe
from conr.training.schedules import view_scale
from conr.training.views import draw, resample

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER_LIKE = [[0, 0.75], [0.6, 0.875], [0.8, 1]]


# The schedule


@pytest.mark.parametrize(
    ("epoch", "length", "scale"),
    [
        *((0, 1000, 0.75), (599, 1000, 0.75), (600, 1000, 0.875), (799, 1000, 0.875), (800, 1000, 1), (999, 1000, 1)),
        *((2, 5, 0.75), (3, 5, 0.875), (4, 5, 1), (0, 1, 0.75)),
    ],
)
def test_the_scale_of_an_epoch_is_that_of_the_last_pair_that_has_begun(epoch: int, length: int, scale: float) -> None:
    assert view_scale(epoch, PAPER_LIKE, length) == scale
    assert view_scale(epoch, [], length) == 1


@given(st.data(), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_shares_that_are_whole_epochs_begin_exactly_there(data: st.DataObject, length: int) -> None:
    begins = sorted({0, *data.draw(st.lists(st.integers(0, length - 1), max_size=5))})
    scales = data.draw(st.lists(st.floats(0.1, 1), min_size=len(begins), max_size=len(begins)))
    resolution = [[begin / length, scale] for begin, scale in zip(begins, scales, strict=True)]
    for epoch in range(length):
        expected = None
        for begin, scale in zip(begins, scales, strict=True):
            if Fraction(begin, length) <= Fraction(epoch, length):
                expected = scale
        assert view_scale(epoch, resolution, length) == expected


def recipe(first_epoch: int, side_scales: list[list[float]]) -> Recipe:
    schedule = Optimizer(warmup_epochs=1, schedule_epochs=10)
    return Recipe("pretrain", 0, Pretrain(epochs=8, batch_size=8), schedule, Views(resolution=side_scales), first_epoch)


def test_both_stages_share_the_schedule_and_sizes_are_whole_pixels() -> None:
    first, second = recipe(0, PAPER_LIKE), recipe(8, PAPER_LIKE)
    assert [first.view_size(epoch, (32, 32))[0] for epoch in range(8)] == [24] * 6 + [28] * 2
    assert second.view_size(0, (32, 32)) == (32, 32)
    assert first.view_size(6, (10, 9)) == (9, 8)  # 8.75 and 7.875
    assert recipe(0, [[0, 0.5]]).view_size(0, (9, 7)) == (5, 4)  # 4.5 and 3.5
    assert first.view_sizes((32, 32)) == [(24, 24), (28, 28)]
    assert recipe(0, []).view_sizes((32, 20)) == [(32, 20)]


# The views


def resampled(image: NDArray[np.float64], box: list[float], flipped: bool, size: tuple[int, int]) -> Any:
    """A crop, resized bilinearly, pixel by pixel in float64."""
    top, left, height, width = box
    result = np.empty((*size, image.shape[2]))
    for i in range(size[0]):
        for j in range(size[1]):
            column = size[1] - 1 - j if flipped else j
            y = min(max(top + (i + 0.5) * height / size[0] - 0.5, top), top + height - 1)
            x = min(max(left + (column + 0.5) * width / size[1] - 0.5, left), left + width - 1)
            y0, x0 = int(np.floor(y)), int(np.floor(x))
            y1, x1 = min(y0 + 1, image.shape[0] - 1), min(x0 + 1, image.shape[1] - 1)
            above = (1 - (x - x0)) * image[y0, x0] + (x - x0) * image[y0, x1]
            below = (1 - (x - x0)) * image[y1, x0] + (x - x0) * image[y1, x1]
            result[i, j] = (1 - (y - y0)) * above + (y - y0) * below
    return result


@pytest.mark.parametrize("size", [(9, 12), (6, 7), (12, 16), (4, 4)])
def test_smaller_views_are_those_of_a_loop_in_float64(size: tuple[int, int]) -> None:
    pixels = torch.rand(5, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    drawn = draw(5, 12, 16, Views(), 0.2, torch.Generator().manual_seed(1))
    found = resample(pixels, drawn.crop, drawn.flipped, torch.zeros(5), size)
    assert found.shape == (5, 3, *size)
    for image, box, flipped, view in zip(pixels, drawn.crop, drawn.flipped, found, strict=True):
        expected = resampled(image.permute(1, 2, 0).double().numpy(), box.tolist(), bool(flipped), size)
        np.testing.assert_allclose(view.permute(1, 2, 0).numpy(), expected, atol=2e-6)


# Trainings

EPOCHS, COUNT, BATCH = 3, 32, 16
IMAGES = patterned(np.arange(COUNT) % 4)


@pytest.fixture(autouse=True)
def small_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "Encoder", SmallEncoder)
    monkeypatch.setattr(checkpoints, "SAVING", float("inf"))  # after every epoch, however little time it took


class Sizes(Observer):
    """The sizes of views, a step at a time."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def traced(self, name: str, value: Any) -> None:
        if name == "pixels":
            assert {view.shape[2:] for view in value} == {(value[0].shape[2],) * 2}
            self.seen.append(value[0].shape[2])


def train(
    stage: str,
    resolution: list[list[float]],
    checkpoint: Checkpoint | None = None,
    observer: Observer = SILENT,
    execution: Execution | None = None,
) -> tuple[Mapping[str, Tensor], list[Row]]:
    """Three epochs of two steps: of pretraining the first three of six, of ConNR the last three."""
    model: Siamese = small_spec().build(seed=0)
    shared: dict[str, Any] = {
        "device": "cpu",
        "precision": "float32",
        "views": Views(resolution=resolution),
        "optimizer": Optimizer(base_learning_rate=0.5, warmup_epochs=1, schedule_epochs=6, target_momentum=0.9),
    }
    own: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH}
    kept = checkpoint or Unsaved()
    if stage == "pretrain":
        parameters = PretrainStage(**shared, pretrain=Pretrain(**own))
        log = pretrain(model, IMAGES, None, parameters, kept, observer, execution)
    else:
        second = FinetuneStage(**shared, clusters=4, k=4, k1=5, k2=2, finetune=Finetune(**own))
        log = finetune(model, IMAGES, None, second, EPOCHS, kept, observer, execution=execution)
    return model.state_dict(), [{name: value for name, value in row.items() if name != "seconds"} for row in log]


STAGES = ("pretrain", "finetune")
SMALLER = [[0, 0.5], [1 / 6, 0.75], [4 / 6, 0.875], [5 / 6, 1]]  # sizes 4, 6, 6 and then 6, 7, 8


def assert_equal(
    found: tuple[Mapping[str, Tensor], list[Row]], expected: tuple[Mapping[str, Tensor], list[Row]]
) -> None:
    assert [name for name, tensor in found[0].items() if not torch.equal(tensor, expected[0][name])] == []
    assert found[1] == expected[1]


@pytest.mark.parametrize("stage", STAGES)
def test_the_whole_size_from_the_start_is_as_none_bit_for_bit(stage: str) -> None:
    assert_equal(train(stage, [[0, 1]]), train(stage, []))


@pytest.mark.parametrize(("stage", "sides"), [("pretrain", [4, 4, 6, 6, 6, 6]), ("finetune", [6, 6, 7, 7, 8, 8])])
def test_views_have_the_sizes_of_the_schedule(stage: str, sides: list[int]) -> None:
    sizes = Sizes()
    train(stage, SMALLER, observer=sizes)
    assert sizes.seen == sides


class Killed(BaseException):
    """Stands for the signal that ends a run."""


class KillAfter(Observer):
    """The process dies after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step_done(self, amount: int = 1, note: str = "") -> None:
        self.left -= amount
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("steps", [3, 5])
def test_a_resumed_training_has_the_same_weights(stage: str, steps: int, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(stage, SMALLER, Checkpoint(tmp_path), KillAfter(steps))
    assert Checkpoint(tmp_path).epochs == steps // 2
    assert_equal(train(stage, SMALLER, Checkpoint(tmp_path)), train(stage, SMALLER))


class FirstStep(Observer):
    """Whether there was one."""

    made = False

    def step_done(self, amount: int = 1, note: str = "") -> None:
        self.made = True


def test_views_and_networks_are_tried_with_every_size_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    observer, sizes = FirstStep(), [[0, 0.5], [1 / 6, 0.75], [2 / 6, 1]]
    shapes: dict[bool, set[tuple[Any, ...]]] = {False: set(), True: set()}  # after the first step, and before

    def noted(function: Any, **options: Any) -> Any:  # PyTorch's compiler takes seconds
        def compiled(*values: Any, **named: Any) -> Any:
            result = function(*values, **named)
            shape = result[0].shape if isinstance(result, tuple) else values[0].shape
            shapes[observer.made].add((function, *shape))
            return result

        return compiled

    monkeypatch.setattr(torch, "compile", noted)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    found = train("pretrain", sizes, observer=observer, execution=Execution(compiled=True, one_forward=True))
    assert shapes[True] <= shapes[False]
    assert len(shapes[False]) == 3 * 3 + 1  # views, online and target network; what the predictor gets has one shape
    assert_equal(found, train("pretrain", sizes, execution=Execution(one_forward=True)))


# What is refused

MESSAGE = r"should be [] or at most 8 pairs [share of the schedule, size] such as [[0, 0.75], [0.6, 0.875], [0.8, 1]];"


@pytest.mark.parametrize(
    "value",
    [
        3,
        [0, 0.75],
        [[0, 0.75, 1]],
        [[0.1, 0.75]],
        [[0, 0.75], [0, 1]],
        [[0, 0.5], [0.8, 0.75], [0.6, 1]],
        [[0, 0.75], [1, 1]],
        [[0, 0]],
        [[0, 1.25]],
        [[0, True]],
        [[0, "1"]],
        [[0, float("nan")]],
        [[number / 10, 1] for number in range(9)],
    ],
)
def test_what_is_no_schedule_of_sizes_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=f"views.resolution = {re.escape(f'{value!r} {MESSAGE}')}"):
        tiny({"views.resolution": value})


def test_views_of_too_few_pixels_are_refused_before_the_training(packed: Workspace) -> None:
    manifest = load_manifest(packed.store)
    check_data(tiny({"views.resolution": [[0, 0.5], [0.5, 1]]}), manifest)  # 4 pixels of 8
    message = "0.4 of an image's 8 pixels is less than 4; use sizes of at least 0.5"
    for stage in (PretrainStage, FinetuneStage):
        parameters = stage.of(tiny({"views.resolution": [[0, 0.5], [0.3, 0.4], [0.8, 1]]}))
        with pytest.raises(UserError, match=re.escape(message)):
            check_data(parameters, manifest)


def test_a_frozen_backbone_has_no_use_for_it() -> None:
    message = r"views.resolution = \[\[0.0, 0.5\]\] is for networks that are trained, .*; set views.resolution: \[\]"
    with pytest.raises(UserError, match=message):
        tiny({"network.backbone": "onnx:model.onnx", "finetune.epochs": 0, "views.resolution": [[0, 0.5]]})


def test_a_flag_has_commas_between_pairs() -> None:
    assert pairs("0:0.75, 0.6:0.875,0.8:1") == PAPER_LIKE
    assert pairs("") == []
    assert pairs(PAPER_LIKE) is PAPER_LIKE
    for text in ("0.5", "0:1:2", "0:a", "0;1"):
        with pytest.raises(typer.BadParameter, match=r"should be pairs of numbers such as 0:0\.75,0\.8:1"):
            pairs(text)
