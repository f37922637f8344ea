"""Embedding by Ray Data, in a real Ray on this machine: the local numbers, whatever happens to an actor."""

import pickle
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_readers import kill_once, unreadable
from small_encoder import DIMENSION, images

from conr.data.items import Item, array_items
from conr.embedding.engines.images import StoreImages
from conr.embedding.engines.items import ItemImages
from conr.embedding.engines.ray_data import embed_with_ray, embedded
from conr.embedding.engines.run import write_shards
from conr.embedding.engines.settings import LOCAL, Engine
from conr.embedding.engines.shards import Manifest, Shards
from conr.errors import UserError

SIZE, COUNT = 8, 60
PLAN = Manifest(identity={}, images=COUNT, rows=20, part=10, dimension=DIMENSION)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray with two CPUs, all of which actors may take, and a GPU that is none. An engine uses it as it is."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")  # before it is imported, as the next two
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", "0" * 64)
        environment.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # where its processes find odd_readers
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
    np.save(tmp_path / "images.npy", images(COUNT, SIZE))
    stored = StoreImages(tmp_path / "images.npy", np.load(tmp_path / "images.npy"), [""] * COUNT)
    parts = [range(first, first + 10) for first in range(0, COUNT, 10)]
    rows = [{"first": part.start, "read": pickle.dumps(stored.reader(part))} for part in parts]
    plan = embedded(ray, rows, encoder.read_bytes(), "cpu", 1, 1)
    found = {row["first"]: np.frombuffer(row["embeddings"], np.float32) for row in plan.take_all()}
    expected = {part.first: part.embeddings.ravel() for part in embed_with_ray(encoder, "cpu", stored, parts, None)}
    assert found.keys() == expected.keys() == {part.start for part in parts}
    assert all(np.array_equal(found[first], expected[first]) for first in found)


def test_a_gpu_that_onnxruntime_cannot_use_is_refused(ray: Any, encoder: Path) -> None:
    with pytest.raises(UserError, match="device: cuda was asked for, but Ray has no GPU that onnxruntime can use"):
        next(embed_with_ray(encoder, "cuda", items_with({}), [range(10)], None))


def test_without_ray_its_extra_is_named(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--engine ray needs Ray: pip install 'conr\[ray\]'"):
        next(embed_with_ray(encoder, "cpu", items_with({}), [range(10)], None))
