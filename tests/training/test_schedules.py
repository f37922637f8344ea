"""Learning rate and target momentum at epochs whose values are known by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conr.training.schedules import learning_rate, target_momentum

repeatable = settings(derandomize=True, deadline=None, max_examples=50)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, 0.0),
        (12.5, 0.025),
        (25, 0.05),
        (50, 0.1),  # end of the warm-up
        (525, 0.05),  # half-way down the cosine
        (50 + 950 / 3, 0.075),  # cos 60° = 1/2
        (50 + 950 * 2 / 3, 0.025),
        (1000, 0.0),
        (1200, 0.0),
    ],
)
def test_learning_rate_by_hand(epoch: float, expected: float) -> None:
    assert learning_rate(epoch, 0.1, 50, 1000) == pytest.approx(expected, abs=1e-12)


def test_learning_rate_without_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0, 0.3, 0, 10) == 0.3


def test_warmup_as_long_as_the_schedule_ends_at_the_peak() -> None:
    assert learning_rate(9.5, 0.3, 10, 10) == pytest.approx(0.285)
    assert learning_rate(10, 0.3, 10, 10) == 0.3


@repeatable
@given(warmup=st.integers(0, 50), length=st.integers(1, 200))
def test_learning_rate_rises_to_the_peak_and_then_falls(warmup: int, length: int) -> None:
    rates = [learning_rate(epoch / 2, 0.1, warmup, warmup + length) for epoch in range(2 * (warmup + length) + 1)]
    rising, falling = rates[: 2 * warmup + 1], rates[2 * warmup :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert max(rates) == rates[2 * warmup] == 0.1
    assert rates[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, 0.996),
        (250, 1 - 0.004 * (1 + math.sqrt(0.5)) / 2),
        (500, 0.998),
        (1000, 1.0),
        (1001, 1.0),
    ],
)
def test_target_momentum_by_hand(epoch: float, expected: float) -> None:
    assert target_momentum(epoch, 0.996, 1000) == pytest.approx(expected, abs=1e-12)


@repeatable
@given(start=st.floats(0, 1), length=st.integers(1, 200))
def test_target_momentum_grows_from_its_start_to_one(start: float, length: int) -> None:
    values = [target_momentum(epoch / 2, start, length) for epoch in range(2 * length + 1)]
    assert values[0] == pytest.approx(start, abs=1e-15)
    assert values[-1] == 1.0
    assert values == sorted(values)
