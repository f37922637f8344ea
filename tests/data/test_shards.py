"""Images in shards: they index as one array does, and a shard that is missing, truncated or another one is named."""

import hashlib
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from conr.data import images as module
from conr.data import writing
from conr.data.images import INDEX, ShardedImages, first_images, open_images, write_index
from conr.data.items import Item, Source
from conr.data.pack import pack
from conr.data.store import open_store, write_subset
from conr.data.writing import ONE_FILE, ImageWriter, images_of_a_shard
from conr.embedding.engines.images import StoreImages
from conr.errors import UserError
from conr.parameters import Prepare

SIZE, COUNT = 4, 23
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)


def write(folder: Path, pixels: NDArray[np.uint8], most: int, together: int = 7) -> Path:
    """Shards of at most so many images, which come in groups; returns the path of their table."""
    with ImageWriter(folder, SIZE, most) as writer:
        for first in range(0, len(pixels), together):
            writer.append(pixels[first : first + together])
        write_index(folder / INDEX, writer.finish())
    return folder / INDEX


def opened(path: Path) -> ShardedImages:
    images = open_images(path, SIZE, "pack again")
    assert isinstance(images, ShardedImages)
    return images


indices = st.integers(-COUNT, COUNT - 1)
choices = st.one_of(
    indices,
    indices.map(np.int64),
    st.slices(COUNT),
    st.lists(indices, max_size=30),
    st.lists(indices, max_size=30).map(lambda numbers: np.array(numbers, np.int32)),
    st.lists(st.booleans(), min_size=COUNT, max_size=COUNT).map(np.array),
    st.lists(st.tuples(indices, indices), min_size=1).map(np.array),
)


@pytest.fixture(scope="module")
def in_files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ShardedImages]:
    """The images in shards of so many."""
    return {most: opened(write(tmp_path_factory.mktemp("shards"), PIXELS, most)) for most in (1, 2, 5, 22, 23, 99)}


@settings(deadline=None)
@given(most=st.sampled_from((1, 2, 5, 22, 23, 99)), rows=choices, first=st.integers(1, COUNT))
def test_shards_index_as_one_array(in_files: dict[int, ShardedImages], most: int, rows: Any, first: int) -> None:
    images = in_files[most]
    found = images[rows]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, PIXELS[rows])
    fewer = first_images(images, first)
    assert len(fewer) == first
    kept = np.arange(COUNT)[rows] % first
    np.testing.assert_array_equal(fewer[kept], PIXELS[kept])
    np.testing.assert_array_equal(fewer[-1], PIXELS[first - 1])


def test_shards_have_the_facts_of_one_array(in_files: dict[int, ShardedImages]) -> None:
    for most, images in in_files.items():
        assert len(images.shards) == -(-COUNT // most)
        facts = len(images), images.shape, images.nbytes, images.dtype
        assert facts == (COUNT, PIXELS.shape, PIXELS.nbytes, PIXELS.dtype)
        np.testing.assert_array_equal(np.asarray(images), PIXELS)
        np.testing.assert_array_equal(list(images), PIXELS)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Of shards of 5, 5, 5, 5 and 3 images."""
    return write(tmp_path, PIXELS, 5)


def test_images_of_one_shard_are_mapped_and_not_copied(index: Path) -> None:
    images = opened(index)
    assert isinstance(images[6:9], np.memmap)
    assert isinstance(images[7], np.memmap)
    assert not isinstance(images[3:7], np.memmap)


@pytest.mark.parametrize("rows", [COUNT, -COUNT - 1, [0, COUNT], [-COUNT - 1], np.zeros(COUNT - 1, bool)])
def test_images_that_are_not_there_are_an_error(index: Path, rows: object) -> None:
    with pytest.raises(IndexError):
        opened(index)[rows]  # type: ignore[index]
    with pytest.raises(IndexError):
        opened(index).first(7)[[7]]


def test_images_are_chosen_by_integers_only(index: Path) -> None:
    with pytest.raises(TypeError):
        opened(index)[np.array([0.5])]


def test_a_batch_is_read_into_a_buffer(index: Path) -> None:
    buffer = np.zeros((4, SIZE, SIZE, 3), np.uint8)
    assert opened(index).take(np.array([22, 0, 9, 0]), buffer) is buffer
    np.testing.assert_array_equal(buffer, PIXELS[[22, 0, 9, 0]])


def test_few_shards_are_mapped_at_a_time(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAPPED", 2)
    images, files = opened(index), Path("/proc/self/fd")
    before = len(list(files.iterdir()))
    np.testing.assert_array_equal(images[::-1], PIXELS[::-1])
    assert len(list(files.iterdir())) <= before + 2


def test_another_process_opens_the_same_shards(index: Path) -> None:
    stored = StoreImages(index, opened(index), [""] * COUNT)
    for part in (range(0, 5), range(3, 17), range(20, COUNT)):
        here = next(stored.read([part]))
        there = pickle.loads(pickle.dumps(stored.reader(part)))()
        np.testing.assert_array_equal(there.images, PIXELS[part.start : part.stop])
        np.testing.assert_array_equal(here.images, there.images)
        assert here.reasons == there.reasons == [""] * len(part)


# Writing


def test_the_table_names_each_file_with_its_images_and_its_hash(index: Path) -> None:
    rows = pq.read_table(index).to_pylist()
    assert [(row["file"], row["first"], row["count"]) for row in rows] == [
        (f"images/{number:05}.npy", 5 * number, min(5, COUNT - 5 * number)) for number in range(5)
    ]
    for row in rows:
        path = index.parent / row["file"]
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        np.testing.assert_array_equal(np.load(path), PIXELS[row["first"] :][: row["count"]])


def test_a_shard_holds_whole_images_and_is_no_larger_than_asked_for() -> None:
    assert images_of_a_shard(0, 32) == ONE_FILE
    assert images_of_a_shard(64, 224) == 64_000_000 // (224 * 224 * 3)
    assert images_of_a_shard(1, 1024) == 1, "at least one"


@pytest.mark.parametrize("behind", [False, True], ids=["", "more behind"])
@pytest.mark.parametrize("stop", [0, 3, 5, 12, 20, COUNT])
def test_a_writer_continues_where_another_was_killed(index: Path, tmp_path: Path, stop: int, behind: bool) -> None:
    other = tmp_path / "other"
    with ImageWriter(other, SIZE, 5) as killed:
        killed.append(PIXELS[:stop])
        sizes = killed.sync()
        if behind:  # of which nothing is known
            killed.append(PIXELS[stop : stop + 4] + 1)
    with ImageWriter(other, SIZE, 5, stop, sizes) as writer:
        writer.append(PIXELS[stop:])
        shards = writer.finish()
    assert shards == opened(index).shards
    for shard in shards:
        assert (other / shard.file).read_bytes() == (index.parent / shard.file).read_bytes()


# Damage


def source(numbers: range) -> Source:
    def read(number: int) -> NDArray[np.uint8]:
        return PIXELS[number]

    return Source("x", [Item(f"{number}", None, partial(read, number)) for number in numbers], len(numbers), 0)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store in shards of 5, 5, 5, 5 and 3 images."""
    monkeypatch.setattr(writing, "MEGABYTE", 5 * PIXELS[0].nbytes)
    pack(source(range(COUNT)), Prepare(image_size=SIZE, shard_size=1), tmp_path / "store")
    return tmp_path / "store"


def test_a_store_in_shards_has_the_pixels_and_the_checksum_of_one_file(store: Path, tmp_path: Path) -> None:
    one = pack(source(range(COUNT)), Prepare(image_size=SIZE), tmp_path / "one")
    opened = open_store(store)
    np.testing.assert_array_equal(np.asarray(opened.images), PIXELS)
    assert opened.manifest == one.model_copy(update={"shards": 5})
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["images.npy", "manifest.json"]


def test_images_behind_the_others_leave_whole_shards_as_they_are(store: Path) -> None:
    before = {path.name: path.read_bytes() for path in (store / "images").iterdir()}
    pack(source(range(20)), Prepare(image_size=SIZE, shard_size=1), store)
    after = {path.name: path.read_bytes() for path in (store / "images").iterdir()}
    assert after == {name: before[name] for name in sorted(before)[:4]}


def test_a_subset_of_shards_is_a_store_of_one_file(store: Path, tmp_path: Path) -> None:
    chosen = np.array([22, 3, 4, 11])
    write_subset(open_store(store), chosen, tmp_path / "few")
    few = open_store(tmp_path / "few")
    np.testing.assert_array_equal(few.images, PIXELS[chosen])
    assert few.manifest.shards is None


@pytest.mark.parametrize("size", [None, 0, 60, 200])
def test_a_shard_that_is_missing_or_truncated_is_named(store: Path, size: int | None) -> None:
    path = store / "images/00002.npy"
    path.unlink() if size is None else os.truncate(path, size)
    with pytest.raises(UserError, match=rf"^{path} is (missing|truncated).*; delete .*conr prepare"):
        open_store(store)


def test_shards_that_are_swapped_are_named(store: Path) -> None:
    first, second, between = (store / f"images/{name}" for name in ("00001.npy", "00002.npy", "between"))
    first.rename(between)
    second.rename(first)
    between.rename(second)
    with pytest.raises(UserError, match=rf"^{first} is not the file that images\.parquet names .*conr prepare"):
        open_store(store)


@pytest.mark.parametrize("content", ["cut", "other", "float"])
def test_a_damaged_shard_of_a_store_that_is_not_compared_is_named_when_it_is_used(
    store: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr("conr.data.store.CHECKED", 0)
    path = store / "images/00002.npy"
    if content == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        np.save(path, np.zeros((6, SIZE, SIZE, 3), np.uint8 if content == "other" else np.float64))
    images = open_store(store).images
    np.testing.assert_array_equal(images[:10], PIXELS[:10])
    with pytest.raises(UserError, match=rf"^{path} .*conr prepare"):
        images[[1, 11]]


@pytest.mark.parametrize("change", ["missing", "cut", "gap", "none", "elsewhere", "columns"])
def test_a_damaged_table_is_named(store: Path, change: str) -> None:
    path = store / INDEX
    rows = pq.read_table(path).to_pylist()
    if change == "missing":
        path.unlink()
    elif change == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif change == "gap":
        pq.write_table(pa.Table.from_pylist([rows[0], *rows[2:]]), path)
    elif change == "none":
        pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)).slice(0, 0), path)
    elif change == "elsewhere":
        pq.write_table(pa.Table.from_pylist([{**rows[0], "file": "../other.npy"}, *rows[1:]]), path)
    else:
        pq.write_table(pa.Table.from_pylist([{**row, "more": 1} for row in rows]), path)
    with pytest.raises(UserError, match=rf"^{path} is missing or damaged .*conr prepare"):
        open_store(store)


def test_a_table_of_fewer_images_than_the_manifest_says_is_noticed(store: Path) -> None:
    pq.write_table(pq.read_table(store / INDEX).slice(0, 4), store / INDEX)
    with pytest.raises(UserError, match=rf"^{store}: images\.parquet holds \(20, .*its manifest says \(23, "):
        open_store(store)
