"""Images that are streamed: every image once an epoch, read ahead, and the weights that resident images give."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_networks import patterned, small_spec
from torch import Tensor

from conr.errors import UserError
from conr.observer import Observer
from conr.parameters import FinetuneStage, Optimizer, PretrainStage
from conr.parameters.groups import Finetune, Pretrain
from conr.refinement.objective import finetune
from conr.training import checkpoints, streaming
from conr.training.checkpoints import Checkpoint
from conr.training.compute import Compute
from conr.training.pretraining import pretrain
from conr.training.streaming import ReadAhead, shuffled

CPU = torch.device("cpu")
ROW = 2 * 2 * 3  # bytes of an image


def blank(count: int) -> Tensor:
    return torch.zeros(count, 2, 2, 3, dtype=torch.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def in_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of four images, of which two are shuffled together, however few images there are."""
    for name, value in (("WHOLE", 0), ("SHARD", 4 * ROW), ("SHARDS", 2)):
        monkeypatch.setattr(streaming, name, value)


# The order of an epoch


def test_images_that_fit_are_shuffled_as_a_whole() -> None:
    assert torch.equal(shuffled(blank(100), seeded(3)), torch.randperm(100, generator=seeded(3)))


@given(count=st.integers(1, 50), whole=st.integers(0, 60), shard=st.integers(1, 60), shards=st.integers(1, 5))
def test_an_epoch_has_every_image_once(count: int, whole: int, shard: int, shards: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("WHOLE", whole * ROW), ("SHARD", shard * ROW), ("SHARDS", shards)):
            patch.setattr(streaming, name, value)
        order = shuffled(blank(count), seeded())
        assert sorted(order.tolist()) == list(range(count))
        assert torch.equal(order, shuffled(blank(count), seeded())), "it depends on the generator's state only"


def test_shards_are_read_in_groups_and_shuffled_within(in_shards: None) -> None:
    order = shuffled(blank(40), seeded())
    groups = [set((group // 4).tolist()) for group in order.split(8)]
    assert all(len(group) == 2 for group in groups), "of two shards each"
    assert len(set().union(*groups)) == 10
    assert [sorted(group.tolist()) for group in order.split(8)] != [group.tolist() for group in order.split(8)]
    assert order.tolist() != shuffled(blank(40), seeded(1)).tolist()


def test_the_last_shard_may_be_shorter(in_shards: None) -> None:
    assert sorted(shuffled(blank(42), seeded()).tolist()) == list(range(42))


# Reading ahead


def test_batches_come_in_their_order_with_their_images() -> None:
    images = torch.randint(0, 256, (30, 2, 2, 3), dtype=torch.uint8, generator=seeded())
    indices = list(torch.randperm(30, generator=seeded(1)).view(5, 6))
    reader = ReadAhead(images, 6, CPU)
    for _ in range(2):  # epochs
        for own, batch in zip(indices, reader.batches(indices), strict=True):
            assert torch.equal(batch, images[own])
    assert list(reader.batches([])) == []


def test_a_batch_is_read_while_the_one_before_is_used_and_no_further() -> None:
    images = torch.arange(40, dtype=torch.uint8).view(10, 2, 2).unsqueeze(3).repeat(1, 1, 1, 3)
    asked: list[int] = []

    class Watched(ReadAhead):
        def _read(self, number: int, indices: Tensor) -> "object":  # type: ignore[override]
            asked.append(int(indices[0]))
            return super()._read(number, indices)

    batches = Watched(images, 2, CPU).batches(list(torch.arange(10).view(5, 2)))
    for number in range(5):
        next(batches)
        assert asked == [2 * row for row in range(min(number + 2, 5))]


def test_images_above_half_of_the_memory_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Compute(CPU, torch.float32)
    assert not compute.streams(blank(10))
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": ROW, "SC_PHYS_PAGES": 20}.__getitem__)
    assert not compute.streams(blank(10))
    assert compute.streams(blank(11))
    monkeypatch.setattr("conr.processes.GROUPS", tmp_path)
    (tmp_path / "memory.max").write_text(f"{10 * ROW}")
    assert compute.streams(blank(6)), "in a container"
    assert not compute.streams(blank(5))
    on_gpu = Compute(torch.device("cuda"), torch.float32)
    assert on_gpu.streams(blank(1))
    assert not on_gpu.streams(torch.empty(1, 2, 2, 3, dtype=torch.uint8, device="meta"))


# Training


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(checkpoints, "SAVING", float("inf"))  # saved after every epoch
    yield
    torch.set_num_threads(before)


class StopAfter(Observer):
    """Ends the training after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step_done(self, amount: int = 1, note: str = "") -> None:
        self.left -= amount
        if self.left == 0:
            raise UserError("stopped")


LABELS = np.random.default_rng(1).permutation(np.repeat(np.arange(4), 8))


def weights(stage: str, folder: Path, observer: Observer | None = None) -> dict[str, Tensor]:
    """Of a small training of two epochs, from the checkpoint if there is one."""
    shared = {"device": "cpu", "precision": "float32", "optimizer": Optimizer(warmup_epochs=1, schedule_epochs=4)}
    model, images, checkpoint = small_spec().build(seed=0), patterned(LABELS), Checkpoint(folder)
    watch = observer or Observer()
    if stage == "pretrain":
        pretrained = PretrainStage(**shared, pretrain=Pretrain(epochs=2, batch_size=16))
        pretrain(model, images, LABELS, pretrained, checkpoint, watch)
    else:
        own = Finetune(epochs=2, batch_size=16)
        refined = FinetuneStage(**shared, clusters=4, k=5, k1=5, k2=2, fr=0.5, finetune=own)
        finetune(model, images, LABELS, refined, 2, checkpoint, watch)
    return model.state_dict()


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compute, "streams", lambda *_: True)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_streamed_images_give_the_weights_of_resident_ones(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = weights(stage, tmp_path / "resident")
    monkeypatch.setattr(Compute, "streams", lambda *_: True)
    assert_equal(weights(stage, tmp_path / "streamed"), resident)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_streamed_training_in_shards_resumes_with_the_same_weights(
    stage: str, tmp_path: Path, in_shards: None, streamed: None
) -> None:
    whole = weights(stage, tmp_path / "whole")
    with pytest.raises(UserError, match="stopped"):
        weights(stage, tmp_path / "stopped", StopAfter(3))  # in the second epoch
    assert_equal(weights(stage, tmp_path / "stopped"), whole)
