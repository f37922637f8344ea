"""The tables of bench/streaming.py at toy size."""

from dataclasses import replace

import pytest
import streaming

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("one_thread")]


def test_every_way_has_a_row_beside_images_in_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = replace(streaming.NETWORKS["digits"], batch=32, images=128, skipped=1)
    monkeypatch.setitem(streaming.NETWORKS, "digits", toy)
    streaming.main(["--networks", "digits", "--turns", "1", "--steps", "6", "--sizes", "8", "--bytes", "200000"])
    lines = [text.strip("| ").split(" | ") for text in capsys.readouterr().out.splitlines()]
    rows, read = lines[2:6], lines[9:]
    ways = ("in memory", "memory-mapped", "mapped, read ahead", "16 shards, read ahead")
    assert [row[:2] for row in rows] == [["digits", way] for way in ways]
    assert [row[:2] for row in read] == [["8", "whole"], ["8", "shards"]]
    assert rows[0][-2:] == ["1.000", "1.000"]
    assert all(float(cell.replace(",", "")) > 0 for row in rows + read for cell in row[2:])
