"""The log of a training: what is written comes back as numbers, and damage is one line."""

from pathlib import Path

import pytest

from conr.errors import UserError
from conr.training.log import read_log, write_log


def test_numbers_come_back_without_empty_values_and_the_list_of_sizes(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "loss": -0.123456789012345}, {"epoch": 2, "loss": 0.5, "cluster_sizes": "3 2 1", "acc": None}]
    write_log(tmp_path / "log.csv", rows)
    assert read_log(tmp_path / "log.csv") == [{"epoch": 1.0, "loss": -0.123456789012345}, {"epoch": 2.0, "loss": 0.5}]
    assert (tmp_path / "log.csv").read_text().splitlines()[0] == "epoch,loss,cluster_sizes,acc"


@pytest.mark.parametrize("content", [None, "", "epoch,loss\n1,low\n", "epoch,loss\n1\n", "epoch\n\udcff\n"])
def test_a_missing_or_damaged_log_is_one_line_that_says_what_to_do(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    if content is not None:
        path.write_text(content, errors="surrogateescape")
    with pytest.raises(UserError) as caught:
        read_log(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("; run its stage again")
    assert "\n" not in str(caught.value)
