"""What the benchmarks share, and how bit_equal.py compares two runs."""

import os
from pathlib import Path

import bit_equal
import common
import numpy as np
import pytest
import tables
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.bench


def test_calls_take_turns_and_the_first_do_not_count() -> None:
    order: list[str] = []

    def call(name: str) -> int:
        order.append(name)
        return len(order)

    found = common.in_turns({"a": lambda: call("a"), "b": lambda: call("b")}, turns=2, warm_up=1)
    assert order == ["a", "b"] * 3
    assert found["a"].results == [3, 5]
    assert found["b"].seconds == np.median(found["b"].wall) > 0
    assert all(seconds >= 0 for seconds in found["a"].processor)


def test_a_process_of_its_own_is_another() -> None:
    assert common.in_process(os.getpid) != os.getpid()


def test_a_table_of_scores_has_every_seed_their_median_and_means(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_table([3, 4], {"ConNR": [{"acc": 0.5, "nmi": 0.25}, {"acc": 0.75, "nmi": 0.25}]}, ["nmi"])
    assert capsys.readouterr().out.splitlines() == [
        "| ACC, seed | 3 | 4 | median | mean ± std | NMI |",
        "|---|---|---|---|---|---|",
        "| ConNR | 0.500 | 0.750 | 0.625 | 0.625 ± 0.177 | 0.250 ± 0.000 |",
    ]


def test_differences_of_weights_and_clusters_are_counted(tmp_path: Path) -> None:
    folders = tmp_path / "first", tmp_path / "second"
    for number, folder in enumerate(folders):
        stage = folder / "artifacts/finetune" / ("0" if number else "")  # since, and before, a seed has a folder
        stage.mkdir(parents=True)
        tensors = {
            "same": torch.ones(2),
            "other": torch.tensor([1.0, 1.5 + number / 4]),
            f"only {number}": torch.ones(1),
        }
        save_file(tensors, stage / "weights.safetensors")
        (folder / "results").mkdir()
        (folder / "results/assignments.csv").write_text(f"file,cluster\na,0\nb,{number}\n")
    assert bit_equal.weights("finetune", *folders) == "1 of 2 (0.25), 2 are in one only"
    assert bit_equal.clusters(*folders) == "1 of 2"
