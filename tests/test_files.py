"""Files appear whole or not at all; rows appended to an .npy file are the rows that numpy reads."""

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from conr.files import ABANDONED, ArrayWriter, atomic_file


def written(parts: list[NDArray[np.generic]], row_shape: tuple[int, ...], dtype: type[np.generic]) -> bytes:
    """The .npy file that comes of appending the parts."""
    file = io.BytesIO()
    writer = ArrayWriter(file, row_shape, dtype)
    for part in parts:
        writer.append(part)
    writer.close()
    return file.getvalue()


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent  # renaming is atomic within one file system only
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail_half_way() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half of the new")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_before_the_first_byte_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "file"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_each_of_two_writers_publishes_its_own_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path) as first:
        first.write_text("half of the first")
        with atomic_file(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
        first.write_text("first, whole")
    assert path.read_text() == "first, whole"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_writers_left_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    left = {"file[1].a.tmp": 2 * ABANDONED, "file[1].b.tmp": 3 * ABANDONED}
    others = {"file[1].c.tmp": 0.5 * ABANDONED, "file1.d.tmp": 2 * ABANDONED, "file[1].e": 2 * ABANDONED}
    for name, age in (left | others).items():
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with atomic_file(tmp_path / "file[1]") as temporary:
        temporary.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {"file[1]", *others}


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("row_shape", [(), (1,), (7,), (4, 4, 3)])
def test_rows_come_back_in_type_shape_and_order(
    tmp_path: Path, dtype: type[np.generic], row_shape: tuple[int, ...]
) -> None:
    rows = np.random.default_rng(0).integers(0, 100, (9, *row_shape)).astype(dtype)
    path = tmp_path / "rows.npy"
    path.write_bytes(written([rows[:2], rows[2:2], rows[2:]], row_shape, dtype))
    for loaded in (np.load(path), np.load(path, mmap_mode="r")):
        assert loaded.dtype == dtype
        np.testing.assert_array_equal(loaded, rows)


def test_many_appends_come_back(tmp_path: Path) -> None:
    rows = np.arange(3000, dtype=np.int64).reshape(1500, 2)
    (tmp_path / "rows.npy").write_bytes(written([rows[n : n + 1] for n in range(1500)], (2,), np.int64))
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), rows)


def test_no_rows_are_an_empty_array() -> None:
    loaded = np.load(io.BytesIO(written([], (4, 3), np.float32)))
    assert loaded.shape == (0, 4, 3)
    assert loaded.dtype == np.float32


def test_rows_of_another_type_and_layout_are_converted() -> None:
    rows = np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4))
    loaded = np.load(io.BytesIO(written([rows, rows[:, ::-1]], (4,), np.float32)))
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, np.concatenate([rows, rows[:, ::-1]]))


@pytest.mark.parametrize("shape", [(2, 4), (2,), (2, 3, 1)])
def test_rows_of_another_shape_are_refused_and_not_written(shape: tuple[int, ...]) -> None:
    file = io.BytesIO()
    writer = ArrayWriter(file, (3,), np.float32)
    writer.append(np.ones((1, 3), dtype=np.float32))
    with pytest.raises(ValueError, match=r"rows must have shape \(3,\), got"):
        writer.append(np.zeros(shape, dtype=np.float32))
    writer.close()
    np.testing.assert_array_equal(np.load(io.BytesIO(file.getvalue())), np.ones((1, 3)))


def test_the_header_has_room_for_any_number_of_rows() -> None:
    file = io.BytesIO()
    writer = ArrayWriter(file, (224, 224, 3), np.uint8)
    writer.rows = 10**15
    writer.close()
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, _, _ = np.lib.format.read_array_header_1_0(file)
    assert shape == (10**15, 224, 224, 3)


@st.composite
def parts_of_one_shape(draw: st.DrawFn) -> tuple[list[NDArray[np.generic]], tuple[int, ...], type[np.generic]]:
    dtype = draw(st.sampled_from([np.uint8, np.int64, np.float32]))
    row_shape = draw(st.lists(st.integers(1, 4), max_size=3).map(tuple))
    lengths = draw(st.lists(st.integers(0, 5), max_size=6))
    return [draw(arrays.arrays(dtype, (length, *row_shape))) for length in lengths], row_shape, dtype


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=parts_of_one_shape())
def test_the_file_holds_the_concatenation_of_the_parts(
    case: tuple[list[NDArray[np.generic]], tuple[int, ...], type[np.generic]],
) -> None:
    parts, row_shape, dtype = case
    expected = np.concatenate([np.zeros((0, *row_shape), dtype=dtype), *parts])
    loaded = np.load(io.BytesIO(written(parts, row_shape, dtype)))
    assert loaded.dtype == expected.dtype
    np.testing.assert_array_equal(loaded, expected)
