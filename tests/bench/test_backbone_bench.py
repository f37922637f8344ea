"""The table of bench/backbone.py at toy size."""

from pathlib import Path

import backbone
import openvino
import pytest
from common import Turns
from small_networks_onnx import write_network

from conr.models.backbones import Preprocessing

pytestmark = pytest.mark.bench


def test_every_way_and_every_pair_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = write_network(tmp_path / "network.onnx", size=8)
    network.with_suffix(".json").write_text(Preprocessing(size=8).model_dump_json())
    backbone.main(["--backbone", f"onnx:{network}", "--size", "8", "--images", "40", "--turns", "3"])
    rows = [row.strip("| ").split(" | ") for row in capsys.readouterr().out.splitlines() if row.startswith("| ")]
    ways = ["conr", "same batches", "batches of 32", "network alone", "int8"]
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        ways.append("bfloat16")
    assert [row[0] for row in rows[1 : len(ways) + 1]] == ways
    pairs = [" / ".join(pair) for pair in backbone.PAIRS if pair[0] in ways]
    assert [row[0] for row in rows[len(ways) + 2 :]] == pairs
    assert all(float(row[1]) > 0 for row in rows[1:6])
    assert all(float(cell) >= 0 for row in rows[len(ways) + 2 :] for cell in row[1:])


def test_a_ratio_above_one_means_faster_and_is_a_median_of_turns() -> None:
    first, second = Turns([1, 2, 4], [2, 2, 2]), Turns([2, 2, 2], [1, 1, 3])
    assert backbone.ratios(first, second) == (1.0, 0.5)
