"""Engines and shards: the same numbers as without them, each image once, and only what was written is used."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from odd_readers import unreadable
from recorder import Recorder
from small_encoder import DIMENSION, export_in, images

from conr.data.items import Item, array_items
from conr.embedding.engines import run
from conr.embedding.engines.images import StoreImages
from conr.embedding.engines.items import ItemImages
from conr.embedding.engines.local import embed_here
from conr.embedding.engines.run import write_shards
from conr.embedding.engines.settings import LOCAL, Engine
from conr.embedding.engines.shards import MANIFEST, Manifest, Shards, layout
from conr.embedding.session import INPUT, OUTPUT, embed, open_session
from conr.errors import UserError
from conr.files import load_json, sha256_of

SIZE, COUNT = 8, 50
PLAN = Manifest(identity={"encoder": "e"}, images=COUNT, rows=16, part=8, dimension=DIMENSION)


@pytest.fixture
def stored(tmp_path: Path) -> StoreImages:
    np.save(tmp_path / "images.npy", images(COUNT, SIZE))
    names = [f"{number}.png" for number in range(COUNT)]
    return StoreImages(tmp_path / "images.npy", np.load(tmp_path / "images.npy", mmap_mode="r"), names)


def with_broken(broken: Sequence[int]) -> ItemImages:
    items = array_items("{}", images(COUNT, SIZE), [None] * COUNT, SIZE)
    for number in broken:
        items[number] = Item(str(number), None, unreadable)
    return ItemImages(items, SIZE)


def written(shards: Shards, tmp_path: Path) -> NDArray[np.float32]:
    shards.write_array(tmp_path / "written.npy")
    found: NDArray[np.float32] = np.load(tmp_path / "written.npy")
    return found


def test_shards_hold_exactly_what_is_embedded_without_them(encoder: Path, stored: StoreImages, tmp_path: Path) -> None:
    embed(open_session(encoder, "cpu"), stored.images, tmp_path / "direct.npy")
    shards = Shards.opened(tmp_path / "shards", PLAN)
    write_shards(LOCAL, encoder, "cpu", stored, shards)
    np.testing.assert_array_equal(written(shards, tmp_path), np.load(tmp_path / "direct.npy"))
    names = [name for table in shards.read(["file"]) for name in table["file"].to_pylist()]
    assert names == list(stored.files)


@settings(max_examples=30, deadline=None)
@given(
    broken=st.sets(st.integers(0, COUNT - 1)),
    bounds=st.sets(st.integers(1, COUNT - 1)),
)
def test_an_image_that_cannot_be_read_is_a_row_with_its_reason_wherever_it_is(
    encoder: Path, broken: set[int], bounds: set[int]
) -> None:
    edges = [0, *sorted(bounds), COUNT]
    parts = [range(first, last) for first, last in itertools.pairwise(edges)]
    session, source = open_session(encoder, "cpu"), with_broken(sorted(broken))
    results = list(embed_here(session, source, parts))
    assert [result.first for result in results] == [part.start for part in parts]
    reasons = [reason for result in results for reason in result.reasons]
    assert reasons == ["torn" if number in broken else "" for number in range(COUNT)]
    good = [number for number in range(COUNT) if number not in broken]
    expected = session.run([OUTPUT], {INPUT: images(COUNT, SIZE)[good]})[0] if good else np.empty((0, DIMENSION))
    np.testing.assert_allclose(np.concatenate([result.embeddings for result in results]), expected, atol=1e-6)
    alone = [source.reader(part)() for part in parts]
    assert [pixels.reasons for pixels in alone] == [result.reasons for result in results]


def test_a_shard_has_a_row_for_every_image_and_columns_for_those_that_can_be_read(
    encoder: Path, tmp_path: Path
) -> None:
    broken = [0, 3, *range(32, 48)]  # of the third shard all
    shards = Shards.opened(tmp_path / "shards", PLAN)
    describe = {"double": lambda rows: 2 * rows[:, 0]}
    write_shards(
        LOCAL, encoder, "cpu", with_broken(broken), shards,
        lambda rows: {name: call(rows) for name, call in describe.items()},
    )  # fmt: skip
    table = pq.read_table(tmp_path / "shards")  # the manifest is left out
    assert table["file"].to_pylist() == [str(number) for number in range(COUNT)]
    assert [n for n, reason in enumerate(table["reason"].to_pylist()) if reason == "torn"] == broken
    for row in table.to_pylist():
        known = row["embedding"] is not None
        assert known == (row["double"] is not None) == (row["reason"] is None)
        assert not known or row["double"] == 2 * np.float32(row["embedding"][0])
    shards.publish()
    found = load_json(tmp_path / "shards" / MANIFEST, Manifest, "").shards
    assert found is not None
    assert [(shard.first, shard.rows, shard.broken) for shard in found] == [
        (0, 16, 2),
        (16, 16, 0),
        (32, 16, 16),
        (48, 2, 0),
    ]
    assert all(sha256_of(tmp_path / "shards" / shard.file) == shard.sha256 for shard in found)


def test_shares_make_every_shard_once_and_only_then_they_can_be_merged(
    encoder: Path, stored: StoreImages, tmp_path: Path
) -> None:
    shards = Shards.opened(tmp_path / "shards", PLAN)
    for share in ("3/3", "1/3"):
        write_shards(Engine(shard=share), encoder, "cpu", stored, Shards.opened(tmp_path / "shards", PLAN))
    message = r"1 of 4 shards are missing \(2\); run the tasks of --shard that make them, and then --shard merge again$"
    with pytest.raises(UserError, match=message):
        write_shards(Engine(shard="merge"), encoder, "cpu", stored, shards)
    write_shards(Engine(shard="2/3"), encoder, "cpu", stored, shards)
    write_shards(Engine(shard="merge"), encoder, "cpu", stored, shards)
    embed(open_session(encoder, "cpu"), stored.images, tmp_path / "direct.npy")
    np.testing.assert_array_equal(written(shards, tmp_path), np.load(tmp_path / "direct.npy"))


@given(count=st.integers(0, 200), shares=st.integers(1, 30))
def test_shares_are_all_of_the_work_once(count: int, shares: int) -> None:
    own = [number for i in range(shares) for number in Engine(shard=f"{i + 1}/{shares}").own(count)]
    assert sorted(own) == list(range(count))


def test_a_run_that_was_stopped_continues_with_the_shards_that_are_missing(
    encoder: Path, stored: StoreImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Recorder):
        def step_done(self, amount: int = 1, note: str = "") -> None:
            if len(self.steps) == 4:
                raise KeyboardInterrupt
            super().step_done(amount, note)

    shards, again = Shards.opened(tmp_path / "shards", PLAN), Recorder()
    with pytest.raises(KeyboardInterrupt):
        write_shards(LOCAL, encoder, "cpu", stored, shards, observer=Stop())
    assert shards.missing(range(shards.count)) == [2, 3]
    before = {path: path.stat().st_mtime_ns for path in shards.folder.glob("*.parquet")}
    write_shards(LOCAL, encoder, "cpu", stored, shards, observer=again)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (again.tasks, sum(amount for amount, _ in again.steps)) == ([("embed", COUNT, 32)], COUNT - 32)
    monkeypatch.setattr(run, "open_embedder", lambda *_: pytest.fail("nothing is missing"))
    write_shards(LOCAL, encoder, "cpu", stored, shards)


def test_shards_of_something_else_are_never_used(tmp_path: Path) -> None:
    Shards.opened(tmp_path / "shards", PLAN)
    Shards.opened(tmp_path / "shards", PLAN)
    other = PLAN.model_copy(update={"identity": {"encoder": "another"}})
    with pytest.raises(UserError, match=r"shards holds shards of other encoder; name another folder, or delete it$"):
        Shards.opened(tmp_path / "shards", other)
    with pytest.raises(UserError, match="holds shards of other sizes"):
        Shards.opened(tmp_path / "shards", PLAN.model_copy(update={"rows": 8}))
    assert other.fingerprint != PLAN.fingerprint
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my.parquet").touch()
    with pytest.raises(UserError, match="holds Parquet files that are not conr's"):
        Shards.opened(tmp_path / "mine", PLAN)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "of another"])
def test_a_damaged_shard_is_named(encoder: Path, stored: StoreImages, tmp_path: Path, damage: str) -> None:
    shards = Shards.opened(tmp_path / "shards", PLAN)
    write_shards(LOCAL, encoder, "cpu", stored, shards)
    content = bytearray(shards.path(1).read_bytes())
    if damage == "flipped":
        content[len(content) // 3] ^= 1
    shards.path(1).write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    if damage == "of another":
        shards.path(1).write_bytes(shards.path(3).read_bytes())
    with pytest.raises(UserError, match=f"^{shards.path(1)} "):
        shards.write_array(tmp_path / "written.npy")
    assert not (tmp_path / "written.npy").exists()


@pytest.mark.parametrize("count", [1, 3000, 10_000_000])
@pytest.mark.parametrize(("batch", "size"), [(128, 8), (128, 32), (2, 224), (1, 1024)])
def test_a_part_has_whole_batches_and_bounded_pixels_and_a_shard_whole_parts(batch: int, size: int, count: int) -> None:
    plan = layout({}, count, batch, size, 128)
    assert plan.part % batch == plan.rows % plan.part == 0
    assert plan.part * size**2 * 3 <= max(2**23, batch * size**2 * 3)
    assert plan.rows <= 65_536


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1/0", "3", "a/b", "1/3/5", "", "-1/3"])
def test_impossible_shares_are_refused(shard: str) -> None:
    with pytest.raises(UserError, match="must be i/n with i from 1 to n, such as 3/16, or merge"):
        Engine(shard=shard)


def test_an_address_without_ray_is_refused() -> None:
    with pytest.raises(UserError, match="--address auto is of a Ray cluster; add --engine ray"):
        Engine(address="auto")


def test_the_same_network_is_exported_to_the_same_bytes_so_that_tasks_agree_on_their_shards(
    encoder: Path, tmp_path: Path
) -> None:
    assert export_in(tmp_path, "cifar", SIZE).read_bytes() == encoder.read_bytes()
