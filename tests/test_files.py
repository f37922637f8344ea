"""Files appear whole or not at all, and what is damaged is one line that says what to do."""

import csv
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from conr.errors import UserError
from conr.files import (
    ABANDONED,
    ArrayWriter,
    atomic_file,
    load_array,
    load_json,
    load_table,
    save_array,
    sha256_of,
    write_json,
    write_table,
    write_text,
)


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


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a" / "b" / "file") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a" / "b" / "file").read_text() == "new"


# Kinds of files


class Facts(BaseModel):
    """A model to write."""

    model_config = ConfigDict(extra="forbid")

    seeds: list[int]
    name: str | None = None


MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)


def broken_rows() -> Iterator[list[object]]:
    """A row, and then a failure."""
    yield [1, "first"]
    raise RuntimeError


class Unwritable(np.ndarray):
    """A matrix that cannot be written to its end."""

    def tofile(self, *arguments: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")


# For each kind: what writes it, and what fails in the middle.
WRITERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "text": (lambda path: write_text(path, "new"), lambda path: write_text(path, "Käfer \udcff")),
    "table": (
        lambda path: write_table(path, ["number", "word"], [[1, "one"]]),
        lambda path: write_table(path, ["number", "word"], broken_rows()),
    ),
    "json": (
        lambda path: write_json(path, Facts(seeds=[1])),
        lambda path: write_json(path, Facts(seeds=[1], name="\udcff")),
    ),
    "array": (
        lambda path: save_array(path, MATRIX),
        lambda path: save_array(path, MATRIX.view(Unwritable)),
    ),
}
every_kind = pytest.mark.parametrize("kind", WRITERS)


@every_kind
def test_a_file_is_written_into_a_missing_folder_and_replaces_an_old_one(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "folder" / "file"
    WRITERS[kind][0](path)
    content = path.read_bytes()
    path.write_bytes(b"old")
    WRITERS[kind][0](path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@every_kind
def test_a_failure_in_the_middle_leaves_the_old_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(Exception, match=r".*"):
        WRITERS[kind][1](path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@every_kind
def test_a_failure_in_the_middle_leaves_nothing_where_nothing_was(kind: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r".*"):
        WRITERS[kind][1](tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_text_is_utf8_with_its_own_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "Käfer\r\nant\n")
    assert (tmp_path / "file").read_bytes() == "Käfer\r\nant\n".encode()


@pytest.mark.parametrize(
    ("errors", "content"),
    [("surrogateescape", b"\xff.png"), ("backslashreplace", b"\\udcff.png"), ("replace", b"?.png")],
)
def test_a_name_that_is_no_text_is_written_as_asked_for(errors: str, content: bytes, tmp_path: Path) -> None:
    write_text(tmp_path / "text", "\udcff.png", errors)
    assert (tmp_path / "text").read_bytes() == content
    write_table(tmp_path / "table", ["file"], [["\udcff.png"]], errors)
    assert (tmp_path / "table").read_bytes() == b"file\n" + content + b"\n"


def test_a_table_comes_back_as_text_by_column(tmp_path: Path) -> None:
    rows = [[1, "Käfer, rot"], [None, 'a "quoted"\nword'], [0.5, ""]]
    write_table(tmp_path / "table.csv", ["number", "word"], rows)
    expected = [["1", "Käfer, rot"], ["", 'a "quoted"\nword'], ["0.5", ""]]
    assert load_table(tmp_path / "table.csv", "") == [
        dict(zip(["number", "word"], row, strict=True)) for row in expected
    ]
    assert (tmp_path / "table.csv").read_text(encoding="utf-8").startswith("number,word\n1,")


def test_a_model_comes_back_without_what_is_none(tmp_path: Path) -> None:
    write_json(tmp_path / "facts.json", Facts(seeds=[3, 1]))
    assert load_json(tmp_path / "facts.json", Facts, "") == Facts(seeds=[3, 1])
    assert "name" not in (tmp_path / "facts.json").read_text()


def test_an_array_comes_back_mapped_and_writing_to_it_does_not_change_the_file(tmp_path: Path) -> None:
    save_array(tmp_path / "rows.npy", MATRIX)
    loaded = load_array(tmp_path / "rows.npy", "")
    assert isinstance(loaded, np.memmap)
    np.testing.assert_array_equal(loaded, MATRIX)
    loaded[0, 0] = 7
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), MATRIX)


def test_the_checksum_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"conr" * 1000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"conr" * 1000).hexdigest()


# Damage

REMEDY = "run conr extract again"


def refused(load: Callable[[], object]) -> str:
    """The one line of an error that names the file and ends with what to do."""
    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(f"; {REMEDY}")
    return message


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\n\n",
        b"file,cluster\n\xff\xfe,1\n",
        b'file\n"' + b"x" * 200_000,  # larger than any cell may be
        b'file,cluster\n"a.png,1\n',  # a quote that does not end
        b"file,cluster\na.png,1\nb.p",
        b"file,cluster\na.png,1,2\n",
    ],
)
def test_a_missing_or_damaged_table_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content)
    before = csv.field_size_limit()
    assert str(path) in refused(lambda: load_table(path, REMEDY))
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b'{"seeds": [1',
        b"[1, 2]",
        b'{"seeds": "one"}',
        b'{"name": "no seeds"}',
        b'{"seeds": [1], "more": 2}',
        b"\xff\xfe",
    ],
)
def test_missing_or_damaged_json_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in refused(lambda: load_json(path, Facts, REMEDY))


def npy(array: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(array: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"no array at all, but some text",
        npy(MATRIX)[:50],  # within the header
        npy(MATRIX)[:-4],  # within the numbers
        npy(MATRIX).replace(b"(2, 3)", b"(2, 3 "),
        npy(MATRIX).replace(b"(2, 3)", b"(2.,3)"),
        npy(np.array([{}], dtype=object)),
        npz(MATRIX),
    ],
)
def test_a_missing_or_damaged_array_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in refused(lambda: load_array(path, REMEDY))


@pytest.mark.filterwarnings("ignore")  # numpy's, of a header that is odd Python
@settings(max_examples=200, deadline=None, derandomize=True)
@given(changes=st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), min_size=1, max_size=4))
def test_an_array_with_a_changed_header_is_read_or_named(
    changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.npy"
    content = bytearray(npy(MATRIX))
    for position, value in changes:
        content[position] = value
    path.write_bytes(content)
    problem = ""
    try:
        found = load_array(path, REMEDY)
    except UserError as error:
        problem = str(error)
    if problem:
        assert str(path) in problem
        assert "\n" not in problem
    else:
        assert (found.ndim, found.dtype) == (2, np.float32)


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (MATRIX.astype(np.float64), "float64 (2, 3)"),
        (MATRIX.astype(np.int32), "int32 (2, 3)"),
        (MATRIX[0], "float32 (3,)"),
        (MATRIX[None], "float32 (1, 2, 3)"),
        (np.float32(3), "float32 ()"),
    ],
)
def test_an_array_of_another_type_or_shape_is_refused(array: NDArray[np.generic], what: str, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", array)
    message = refused(lambda: load_array(tmp_path / "rows.npy", REMEDY))
    assert str(tmp_path / "rows.npy") in message
    assert what in message


# Rows that are appended


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
    with pytest.raises(ValueError, match=r"^rows .*\(3,\)"):
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
