"""The tables of bench/graph.py at toy size."""

import graph
import pytest

pytestmark = pytest.mark.bench


def test_every_size_and_number_of_entries_has_a_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "in_process", lambda function, *arguments: function(*arguments))
    graph.main(["--sizes", "300", "--seeds", "0"])
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines() if row.startswith("|")]
    assert [row[0] for row in rows if "---" not in row[0]] == [
        *("| N", "| 300", "| N", "| 300", "| entries"),
        *(f"| {name}" for name in graph.ENTRIES),
    ]
    accuracy = [float(row[1]) for row in rows[-len(graph.ENTRIES) :]]
    assert min(accuracy) > 0.8
