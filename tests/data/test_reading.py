"""Reading items, here or in processes: all of them, in order, and no process outlives its parent."""

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conr.data import reading
from conr.data.decode import decode, resize
from conr.data.items import Item
from conr.data.opening import UnreadableImageError
from conr.data.reading import CHUNK, read_all
from conr.errors import UserError

SIZE = 4
COUNT = 9 * CHUNK + 5  # more chunks than are read ahead on two cores


def pixels(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def torn() -> NDArray[np.uint8]:
    raise UnreadableImageError("torn in two")


def mistaken() -> NDArray[np.uint8]:
    raise RuntimeError("a mistake in the code")


def killed() -> NDArray[np.uint8]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def items_of(count: int, last: Sequence[reading.Reader] = ()) -> list[Item]:
    readers = [*(partial(resize, pixels(number), SIZE) for number in range(count)), *last]
    return [Item(f"file-{number}", None, read) for number, read in enumerate(readers)]


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little there is to do."""
    monkeypatch.setattr(reading, "WORTH_PROCESSES", 0.0)


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "Workers", None)


def check_all_in_order(count: int) -> None:
    items = items_of(count, [torn])
    chunks = list(read_all(items))
    assert [item for chunk, _ in chunks for item in chunk] == items
    *found, reason = [outcome for _, outcomes in chunks for outcome in outcomes]
    np.testing.assert_array_equal(np.stack(found), np.stack([pixels(number) for number in range(count)]))
    assert reason == "torn in two"
    assert max(len(chunk) for chunk, _ in chunks) <= CHUNK


@pytest.mark.usefixtures("in_processes")
def test_processes_give_all_images_in_order() -> None:
    check_all_in_order(COUNT)


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, 1796])
def test_short_work_is_done_in_order_without_a_process(count: int) -> None:
    check_all_in_order(count)


@pytest.mark.usefixtures("no_process")
def test_nothing_to_read_is_no_error() -> None:
    assert [outcomes for _, outcomes in read_all([]) if outcomes] == []


@pytest.mark.usefixtures("in_processes")
def test_only_a_few_chunks_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "cores", lambda: 1)
    submitted = []

    class Pool(reading.Workers):
        def submit(self, *arguments: object) -> object:  # type: ignore[override]
            submitted.append(arguments)
            return super().submit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(reading, "Workers", Pool)
    for taken, _ in enumerate(read_all(items_of(COUNT))):
        assert len(submitted) <= taken + 2
    assert len(submitted) == 9


@pytest.mark.usefixtures("in_processes")
def test_a_mistake_in_a_process_comes_out() -> None:
    with pytest.raises(RuntimeError, match="a mistake in the code"):
        list(read_all(items_of(CHUNK, [mistaken])))


@pytest.mark.usefixtures("in_processes")
def test_a_killed_process_is_an_error_for_the_user() -> None:
    with pytest.raises(UserError, match=r"process .*memory"):
        list(read_all(items_of(CHUNK, [killed])))


def test_warnings_are_silenced_and_the_filters_left_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    odd = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"  # says five entries, holds none
    Image.fromarray(pixels(0)).save(path, exif=odd)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode(path, SIZE, "crop")
        assert caught  # Pillow does warn
        caught.clear()
        filters = list(warnings.filters)
        assert len(list(read_all([Item("odd", None, partial(decode, path, SIZE, "crop"))] * 10))) == 1
        assert caught == []
        assert warnings.filters == filters


ENDLESS = """
import signal
from functools import partial
import numpy as np
from conr.data import reading
from conr.data.decode import resize
from conr.data.items import Item

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in a shell's background
    reading.WORTH_PROCESSES = 0.0
    items = [Item("", None, partial(resize, np.zeros((9, 9, 3), np.uint8), 99))] * 10**6
    for number, _ in enumerate(reading.read_all(items)):
        if number == 3:  # the processes are there
            print("reading", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "reading\n"
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # as a terminal does
    else:
        parent.send_signal(number)
    _, errors = parent.communicate(timeout=60)  # the pipes close when the last process that holds them has ended
    assert parent.returncode == -number
    assert "Process SpawnProcess" not in errors
