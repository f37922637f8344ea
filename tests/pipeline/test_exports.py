"""The table of assignments as Parquet: every column, thumbnails, neighbors, names, in bounded memory."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedded_run import groups
from numpy.typing import NDArray
from PIL import Image
from recorder import Recorder

from conr.evaluation.assignment import Assignment, assign
from conr.pipeline import exports
from conr.pipeline.exports import rename_in_parquet, write_parquet

FILES = ["a.png", "deep/b.png", "=c.png", "d\udce4.png", "e.png", "f.png"]
LABELS = ["owl", "owl", "", "cat", "cat", "cat"]


@pytest.fixture
def embeddings() -> NDArray[np.float32]:
    return groups([3, 3], noise=0.1)


@pytest.fixture
def assignment(embeddings: NDArray[np.float32]) -> Assignment:
    return assign(embeddings, groups([1, 1]))


def pixels(size: int, count: int = len(FILES)) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write(path: Path, assignment: Assignment, size: int = 8, **others: Any) -> pa.Table:
    write_parquet(path, FILES, assignment, pixels(size), **others)
    return pq.read_table(path)


def test_the_columns_are_those_of_the_csv_table_as_numbers(assignment: Assignment, tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", assignment, labels=LABELS)
    assert table.column_names == [*assignment.table(FILES, LABELS)[0], "image"]
    assert table["file"].to_pylist() == ["a.png", "deep/b.png", "=c.png", "d\\udce4.png", "e.png", "f.png"]
    assert table["cluster"].to_pylist() == assignment.clusters.tolist() == [0, 0, 0, 1, 1, 1]
    assert table["label"].to_pylist() == ["owl", "owl", None, "cat", "cat", "cat"]
    for name in ("own_distance", "next_cluster", "next_distance", "boundary_ratio"):
        np.testing.assert_array_equal(table[name].to_numpy(), getattr(assignment, name))


def test_the_types_are_those_that_embedding_atlas_documents(
    assignment: Assignment, embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    neighbors = np.array([[1, 2]] * 6)
    plane = embeddings[:, :2]
    table = write(tmp_path / "t.parquet", assignment, positions=plane, embeddings=embeddings, neighbors=neighbors)
    assert table.schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    lists = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])
    assert table.schema.field("neighbors").type == lists
    assert {table.schema.field(name).type for name in "xy"} == {pa.float32()}


@pytest.mark.parametrize("size", [8, 31, 32, 64, 100, 224])
def test_thumbnails_have_at_most_64_pixels_and_small_images_are_exact(
    assignment: Assignment, tmp_path: Path, size: int
) -> None:
    rows = write(tmp_path / "t.parquet", assignment, size)["image"].to_pylist()
    assert [row["path"] for row in rows] == ["a.png", "deep/b.png", "=c.png", "d\\udce4.png", "e.png", "f.png"]
    for row, image in zip(rows, pixels(size), strict=True):
        thumbnail = np.asarray(Image.open(io.BytesIO(row["bytes"])))
        assert thumbnail.shape == (min(size, 64), min(size, 64), 3)
        if size < 32:
            np.testing.assert_array_equal(thumbnail, image)
        else:
            assert abs(float(thumbnail.mean()) - image.mean()) < 5


def test_neighbors_have_the_numbers_of_rows_and_euclidean_distances(
    assignment: Assignment, embeddings: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "ROWS", 4)
    neighbors = np.array([[1, 2], [0, 2], [1, 0], [4, 5], [3, 5], [0, 4]])
    rows = write(tmp_path / "t.parquet", assignment, embeddings=embeddings, neighbors=neighbors)["neighbors"]
    for number, row in enumerate(rows.to_pylist()):
        assert row["ids"] == neighbors[number].tolist()
        expected = [np.linalg.norm(embeddings[number] - embeddings[other]) for other in neighbors[number]]
        np.testing.assert_allclose(row["distances"], expected, atol=1e-6)


def test_one_image_has_no_neighbors(tmp_path: Path) -> None:
    one = groups([1])
    nobody = np.empty((1, 0), dtype=np.int64)
    path = tmp_path / "t.parquet"
    write_parquet(path, ["a"], assign(one, one), pixels(8, 1), embeddings=one, neighbors=nobody)
    (row,) = pq.read_table(path).to_pylist()
    assert row["neighbors"] == {"ids": [], "distances": []}
    assert row["next_cluster"] is None
    assert row["next_distance"] is None


def test_neighbors_without_embeddings_are_refused(assignment: Assignment, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neighbors need the embeddings"):
        write(tmp_path / "t.parquet", assignment, neighbors=np.zeros((6, 1), dtype=np.int64))
    assert list(tmp_path.iterdir()) == []


def test_positions_that_are_not_known_are_null(assignment: Assignment, tmp_path: Path) -> None:
    positions = np.arange(12, dtype=np.float32).reshape(6, 2)
    positions[2] = np.nan
    table = write(tmp_path / "t.parquet", assignment, positions=positions)
    assert table["x"].to_pylist() == [0, 2, None, 6, 8, 10]
    assert table["y"].to_pylist() == [1, 3, None, 7, 9, 11]


def test_rows_are_written_group_by_group(
    assignment: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "ROWS", 4)
    recorder = Recorder()
    whole = write(tmp_path / "t.parquet", assignment, observer=recorder)
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 2
    assert recorder.tasks == [("table", 6, 0)]
    assert [amount for amount, _ in recorder.steps] == [4, 2]
    assert whole["file"].to_pylist()[4:] == FILES[4:]


def test_names_are_written_and_replaced_and_removed(
    assignment: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "ROWS", 4)
    path = tmp_path / "t.parquet"
    unnamed = write(path, assignment, labels=LABELS)
    named = write(path, assignment, labels=LABELS, names={1: "cats"})
    assert named["name"].to_pylist() == [None] * 3 + ["cats"] * 3
    rename_in_parquet(path, {0: "owls", 1: "kittens"})
    renamed = pq.read_table(path)
    assert renamed["name"].to_pylist() == ["owls"] * 3 + ["kittens"] * 3
    assert renamed.drop_columns(["name"]).equals(unnamed)
    rename_in_parquet(path, {})
    assert pq.read_table(path).equals(unnamed)
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]
