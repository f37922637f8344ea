"""The table of bench/streaming.py at toy size."""

from dataclasses import replace

import pytest
import streaming

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("one_thread")]


def test_every_way_has_a_row_beside_images_in_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = replace(streaming.NETWORKS["digits"], batch=32, images=160, skipped=1, timed=2)
    monkeypatch.setitem(streaming.NETWORKS, "digits", toy)
    streaming.main(["--networks", "digits", "--turns", "1"])
    rows = [row.strip("| ").split(" | ") for row in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["digits", way] for way in ("in memory", "memory-mapped", "read ahead")]
    assert rows[0][-2:] == ["1.000", "1.000"]
    assert all(float(cell.replace(",", "")) > 0 for row in rows for cell in row[2:])
