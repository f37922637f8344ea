"""From features to unit vectors: center, unit length, PCA, unit length, compared with float64 written out."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from conr.embedding.projection import ROWS, Projection, fit_projection, write_projected
from conr.errors import UserError


def features(count: int, width: int, seed: int = 0, rank: int | None = None) -> NDArray[np.float32]:
    """Correlated features about a mean that is not 0."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(rank or width, width)) * np.geomspace(1, 0.05, rank or width)[:, None]
    rows = random.normal(size=(count, rank or width)) @ mixing + random.normal(size=width)
    return rows.astype(np.float32)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1, one by one."""
    return np.array([row / max(float(np.sqrt((row**2).sum())), 1e-12) for row in rows])


def oracle(rows: NDArray[np.float32], dimension: int, fitted: int) -> NDArray[np.float64]:
    """All cosines between the projected rows, which do not depend on the signs of the components."""
    wide = rows.astype(np.float64)
    centered = unit(wide - wide[:fitted].mean(axis=0))
    _, _, directions = np.linalg.svd(centered[:fitted], full_matrices=False)
    projected = unit(centered @ directions[:dimension].T)
    cosines: NDArray[np.float64] = projected @ projected.T
    return cosines


@pytest.mark.parametrize(("count", "width", "dimension"), [(40, 12, 5), (40, 12, 12), (9, 30, 4), (9, 30, 8)])
def test_cosines_are_those_of_a_plain_float64_program(count: int, width: int, dimension: int) -> None:
    rows = features(count, width)
    for fitted in (count, count // 2 + 5):
        vectors = fit_projection(rows, dimension, slice(fitted)).apply(rows)
        assert vectors.dtype == np.float32
        assert vectors.shape == (count, min(dimension, fitted - 1))
        found = vectors.astype(np.float64) @ vectors.T
        np.testing.assert_allclose(found, oracle(rows, min(dimension, fitted - 1), fitted), atol=1e-5)


def test_components_are_orthonormal_ordered_and_their_largest_entry_is_positive() -> None:
    rows = features(200, 20)
    projection = fit_projection(rows, 8)
    wide = projection.components.astype(np.float64)
    np.testing.assert_allclose(wide.T @ wide, np.eye(8), atol=1e-6)
    assert (wide[np.abs(wide).argmax(axis=0), np.arange(8)] > 0).all()
    kept = ((unit(rows - rows.mean(axis=0).astype(np.float64)) @ wide) ** 2).sum(axis=0)
    assert (np.diff(kept) < 0).all()


def test_only_the_rows_to_train_on_are_fitted_to() -> None:
    rows = features(60, 10)
    other = rows.copy()
    other[40:] = 1000 * np.random.default_rng(1).normal(size=(20, 10))
    first, second = fit_projection(rows, 4, slice(40)), fit_projection(other, 4, slice(40))
    np.testing.assert_array_equal(first.mean, second.mean)
    np.testing.assert_array_equal(first.components, second.components)


def test_blocks_do_not_matter_and_a_file_holds_what_apply_gives(tmp_path: Path) -> None:
    rows = features(2 * ROWS + 3, 6)
    projection = fit_projection(rows, 3)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(projection.mean, wide.mean(axis=0), rtol=1e-6, atol=1e-7)
    np.save(tmp_path / "features.npy", rows)
    write_projected(np.load(tmp_path / "features.npy", mmap_mode="r"), projection, tmp_path / "vectors.npy")
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), projection.apply(rows), atol=1e-6)


def test_features_of_low_rank_give_as_many_dimensions_as_they_have() -> None:
    rows = features(50, 20, rank=3)
    vectors = fit_projection(rows, 10).apply(rows)
    assert vectors.shape == (50, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_one_image_and_equal_images_have_the_same_unit_vector() -> None:
    for count in (1, 2, 7):
        rows = np.tile(features(1, 9), (count, 1))
        vectors = fit_projection(rows, 4).apply(rows)
        assert vectors.shape == (count, 2)
        np.testing.assert_allclose(vectors, np.tile([1.0, 0.0], (count, 1)), atol=1e-6)


def test_images_that_are_equal_but_for_rounding_errors_are_equal() -> None:
    rows = np.tile(features(1, 9), (20, 1))
    noisy = rows * (1 + 1e-7 * np.random.default_rng(0).normal(size=rows.shape)).astype(np.float32)
    vectors = fit_projection(noisy, 4).apply(noisy)
    assert (vectors @ vectors.T).min() > 1 - 1e-5


def test_features_of_zero_stay_zero() -> None:
    rows = np.zeros((5, 3), np.float32)
    assert np.isfinite(fit_projection(rows, 2).apply(rows)).all()
    assert np.isfinite(Projection(rows[0], np.eye(3, 2, dtype=np.float32)).apply(rows)).all()


@settings(max_examples=50, deadline=None)
@given(arrays(np.int16, st.tuples(st.integers(1, 8), st.integers(1, 5))), st.sampled_from([1e-5, 1.0, 1e5]))
def test_vectors_have_length_1_or_0_whatever_the_features(numbers: NDArray[np.int16], scale: float) -> None:
    rows = (numbers * scale).astype(np.float32)
    projection = fit_projection(rows, 3)
    lengths = np.linalg.norm(projection.apply(rows).astype(np.float64), axis=1)
    assert ((np.abs(lengths - 1) < 1e-4) | (lengths == 0)).all()
    assert projection.components.shape[1] <= min(3, max(len(rows) - 1, 2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    rows = features(5, 3)
    rows[2, 1] = value
    with pytest.raises(UserError, match=r"^the features of the backbone are not finite numbers; use"):
        fit_projection(rows, 2)


def test_nothing_to_fit_to_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        fit_projection(features(5, 3), 2, slice(0))
