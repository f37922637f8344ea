"""What runs on Ray has the local results, whatever happens to a process. One real Ray, which takes seconds to start."""

import os
import pickle
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from in_this_process import InThisProcess
from odd_readers import kill_once, unreadable
from project import run_stages, tiny
from small_encoder import DIMENSION, images

from conr.data.images import INDEX, write_index
from conr.data.items import Item, array_items
from conr.data.writing import ImageWriter
from conr.embedding.engines.images import StoreImages
from conr.embedding.engines.items import ItemImages
from conr.embedding.engines.local import embed_here
from conr.embedding.engines.ray_data import embed_with_ray, embedded
from conr.embedding.engines.run import write_shards
from conr.embedding.engines.settings import LOCAL, Engine
from conr.embedding.engines.shards import Manifest, Shards
from conr.embedding.session import open_session
from conr.errors import UserError
from conr.observer import SILENT, Observer
from conr.pipeline import executors, experiments
from conr.pipeline.ablation import ROWS
from conr.pipeline.experiments import run_experiments
from conr.pipeline.workspace import Workspace
from conr.training.checkpoints import Checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")
SIZE, COUNT = 8, 60
# 492 digits and one epoch: enough that runs differ.
SMALL: dict[str, Any] = {
    "prepare.imbalance": 60.0,
    "pretrain.epochs": 1,
    "finetune.epochs": 1,
    "finetune.batch_size": 128,
    "evaluate.n_init": 2,
}
PLAN = Manifest(identity={}, images=COUNT, rows=20, part=10, dimension=DIMENSION)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray with two CPUs, all of which actors may take, and a GPU that is none. An engine uses it as it is."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")  # before it is imported, as the next two
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", "0" * 64)
        environment.setenv("PYTHONPATH", str(Path(__file__).parent))  # where its processes find odd_readers
        ray = pytest.importorskip("ray", reason="needs the extra ray")
        ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


def items_with(changes: dict[int, Any]) -> ItemImages:
    items = array_items("{}", images(COUNT, SIZE), [None] * COUNT, SIZE)
    return ItemImages([Item(item.file, None, changes.get(n, item.read)) for n, item in enumerate(items)], SIZE)


def test_a_killed_actor_loses_and_doubles_nothing_and_all_numbers_are_the_local_ones(
    ray: Any, encoder: Path, tmp_path: Path
) -> None:
    broken = dict.fromkeys((3, 20, *range(40, 50)), unreadable)
    by_ray, here = (Shards.opened(tmp_path / name, PLAN) for name in ("ray", "local"))
    killed = {35: partial(kill_once, tmp_path / "killed", images(COUNT, SIZE)[35])}
    write_shards(Engine("ray"), encoder, "cpu", items_with(broken | killed), by_ray)
    assert (tmp_path / "killed").exists()
    write_shards(LOCAL, encoder, "cpu", items_with(broken), here)
    for number in range(here.count):
        assert by_ray.path(number).read_bytes() == here.path(number).read_bytes()
    reasons = [reason for table in by_ray.read(["reason"]) for reason in table["reason"].to_pylist()]
    assert [number for number, reason in enumerate(reasons) if reason == "torn"] == sorted(broken)


def test_for_gpus_tasks_read_and_actors_take_no_cpu(ray: Any, encoder: Path, tmp_path: Path) -> None:
    pixels = images(COUNT, SIZE)
    with ImageWriter(tmp_path, SIZE, 16) as writer:  # a store in shards
        writer.append(pixels)
        write_index(tmp_path / INDEX, writer.finish())
    stored = StoreImages(tmp_path / INDEX, pixels, [""] * COUNT)
    parts = [range(first, first + 10) for first in range(0, COUNT, 10)]
    rows = [{"first": part.start, "read": pickle.dumps(stored.reader(part))} for part in parts]
    plan = embedded(ray, rows, encoder.read_bytes(), "cpu", 1, 1)
    found = {row["first"]: np.frombuffer(row["embeddings"], np.float32) for row in plan.take_all()}
    here = embed_here(open_session(encoder, "cpu"), stored, parts)
    expected = {part.first: part.embeddings.ravel() for part in here}
    assert found.keys() == expected.keys() == {part.start for part in parts}
    assert all(np.array_equal(found[first], expected[first]) for first in found)


def test_a_gpu_that_onnxruntime_cannot_use_is_refused(ray: Any, encoder: Path) -> None:
    with pytest.raises(UserError, match="device: cuda was asked for, but Ray has no GPU that onnxruntime can use"):
        next(embed_with_ray(encoder, "cuda", items_with({}), [range(10)], None))


def test_without_ray_its_extra_is_named(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--engine ray needs Ray: pip install 'conr\[ray\]'"):
        next(embed_with_ray(encoder, "cpu", items_with({}), [range(10)], None))


def test_an_address_where_nobody_listens_is_refused_at_once(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # but not listened at
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, shutdown=lambda: None))
        monkeypatch.setitem(sys.modules, "ray.data", SimpleNamespace())
        with pytest.raises(UserError, match=rf"--address {address}: no Ray cluster there .*refused"):
            next(embed_with_ray(encoder, "cpu", items_with({}), [range(10)], address))


@pytest.fixture(scope="module")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A few packed digits. Not to be written to."""
    workspace = Workspace.at(tmp_path_factory.mktemp("few"))
    run_stages(workspace, tiny(SMALL), "prepare")
    return workspace


@pytest.fixture
def own(few_images: Workspace, tmp_path: Path) -> Workspace:
    """The same images, and nothing has run."""
    workspace = Workspace.at(tmp_path)
    workspace.borrow(few_images, "artifacts/store")
    return workspace


def test_rows_that_ray_trains_have_the_local_scores(
    ray: Any, few_images: Workspace, own: Workspace, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [ROWS[0], ROWS[6]]
    found = run_experiments(own, tiny(SMALL), rows, [0], 1, SILENT, Engine("ray"))
    monkeypatch.setattr(executors, "Workers", InThisProcess)
    here = Workspace.at(own.root / "here")
    here.borrow(few_images, "artifacts/store")
    expected = run_experiments(here, tiny(SMALL), rows, [0], 1, SILENT)
    for name, (outcome,) in expected.items():
        assert (found[name][0].pretrained, found[name][0].finetuned) == (outcome.pretrained, outcome.finetuned)
    assert expected[rows[0].name][0].finetuned != expected[rows[1].name][0].finetuned


def test_a_training_that_fails_on_ray_is_named(ray: Any, own: Workspace, one_thread: None) -> None:
    diverges = tiny(SMALL).changed({"optimizer.base_learning_rate": 1e30})
    with pytest.raises(UserError, match=r"^pretraining for InC, seed 3: .*the loss is not a finite number") as raised:
        run_experiments(own, diverges, ROWS[:1], [3], 1, SILENT, Engine("ray"))
    assert "Traceback" not in str(raised.value)


@pytest.mark.timeout(300)
def test_ray_repeats_a_killed_training_and_none_outlives_a_stopped_ablation(
    ray: Any, own: Workspace, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[int] = []

    class KillsThenStops(Observer):
        def step_done(self, amount: int = 1, note: str = "") -> None:
            process = int(next(own.experiments.glob("*/.conr/locks/*.pid")).read_text() or 0)
            if process and process not in processes:
                processes.append(process)
                if len(processes) == 2:
                    raise KeyboardInterrupt  # as the command does for SIGTERM
                os.kill(process, signal.SIGKILL)

    monkeypatch.setattr(experiments, "POLL", 0.01)
    endless = {**SMALL, "pretrain.epochs": 900_000, "optimizer.schedule_epochs": 1_000_000}
    with pytest.raises(KeyboardInterrupt):
        run_experiments(own, tiny(endless), ROWS[:1], [0], 1, KillsThenStops(), Engine("ray"))
    (training,) = own.experiments.iterdir()
    with Workspace.at(training).locked():  # nobody trains there
        (state,) = training.rglob("state.pt")
        saved = Checkpoint(state.parent).epochs
    assert saved > 0

    class Stops(Observer):
        @contextmanager
        def task(self, name: str, total: int, done: int = 0) -> Iterator[None]:
            assert done == saved
            raise KeyboardInterrupt
            yield

    with pytest.raises(KeyboardInterrupt):
        run_experiments(own, tiny(endless), ROWS[:1], [0], 1, Stops(), Engine("ray"))
