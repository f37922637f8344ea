"""The number of threads: the fastest one, kept by what is resumed."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from conr.errors import Note
from conr.training import threads as module
from conr.training.threads import fastest, training_threads

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that may use four threads, as if nothing were said by the environment."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "SECONDS", 0.0)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def used(asked: int | str, folder: Path, device: torch.device = CPU) -> int:
    with training_threads(asked, device, folder):
        return torch.get_num_threads()


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({1: 100, 2: 190, 3: 280}, 3),
        ({1: 100, 2: 30, 3: 20}, 1),
        ({1: 100, 2: 105, 3: 109}, 1),
        ({1: 100, 2: 150, 3: 60}, 2),
    ],
)
def test_the_fastest_number_of_threads_is_chosen_if_it_is_clearly_faster(
    rates: dict[int, float], expected: int
) -> None:
    assert fastest(3, rates.__getitem__) == expected


def test_one_slow_round_does_not_decide() -> None:
    rates = {1: [100.0, 100.0, 100.0], 2: [190.0, 1.0, 190.0]}
    assert fastest(2, lambda number: rates[number].pop()) == 2


def test_powers_of_two_and_all_threads_are_measured_in_turns() -> None:
    asked: list[int] = []

    def rate(number: int) -> float:
        asked.append(number)
        return 1.0

    fastest(6, rate)
    assert asked == 3 * [1, 2, 4, 6]


@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_number_that_is_given_is_used_until_the_training_ends(device: torch.device, tmp_path: Path) -> None:
    assert used(2, tmp_path, device) == 2
    assert torch.get_num_threads() == 4
    assert not any(tmp_path.iterdir())


def test_auto_measures_once_and_a_resumed_training_keeps_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fastest", lambda most, rate: 2)
    with pytest.warns(Note, match="training uses 2 of 4 threads.*training.threads"):
        assert used("auto", tmp_path / "state") == 2
    monkeypatch.setattr(module, "fastest", lambda most, rate: 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert used("auto", tmp_path / "state") == 2, "resumed"
        assert used("auto", tmp_path / "another") == 4


def test_auto_measures_real_work(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)
        assert used("auto", tmp_path) in (1, 2, 4)
    assert torch.get_num_threads() == 4


def test_auto_leaves_what_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fastest", lambda most, rate: 1)
    assert used("auto", tmp_path, GPU) == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert used("auto", tmp_path) == 4
    assert not any(tmp_path.iterdir())
