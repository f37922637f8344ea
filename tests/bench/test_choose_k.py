"""The comparison of criteria for K: the two parts share no draw, rows are kept, and the tables count what is right."""

import json
from collections.abc import Iterator
from pathlib import Path

import choose_k
import choose_k_sets
import numpy as np
import pytest
from choose_k_sets import NOTHING, KnownSet
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.preprocessing import normalize

pytestmark = pytest.mark.bench


def row(choices: dict[str, int | None], classes: int = 10, part: str = "validation", name: str = "a") -> choose_k.Row:
    key = {"part": part, "features": "pixels", "set": name, "classes": classes}
    return {**key, "choices": choices, "clusters": choices["gap"], "criterion": "gap", "clear": True}


def test_the_parts_share_no_set_and_each_has_its_number_of_classes(tmp_path: Path) -> None:
    digits = load_digits()
    labels = {pixels.tobytes(): label for pixels, label in zip(unit(digits.data), digits.target, strict=True)}
    chosen: dict[str, list[bytes]] = {}
    for part in choose_k_sets.PARTS:
        for known in choose_k_sets.known_sets(part, tmp_path, None, tmp_path):
            features = known.load()
            np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
            if known.features == "pixels":
                assert len({labels[image.tobytes()] for image in features}) == known.clusters
            chosen.setdefault(part, []).append(features.tobytes())
    assert [len(sets) for sets in chosen.values()] == [1 + 2 * 4 + 2 * 2, 3 * 4 + 3 * 2]
    assert set(chosen["development"]).isdisjoint(chosen["validation"])


def unit(features: np.ndarray) -> np.ndarray:
    return normalize(features).astype(np.float32)


def test_a_long_tail_keeps_the_largest_class_and_a_tenth_of_the_smallest() -> None:
    labels = np.repeat(np.arange(10), 100)
    *_, tail = choose_k_sets.drawn("validation", "x", 3, labels, (4,), lambda kept: kept.astype(np.float32))
    sizes = np.sort(np.bincount(labels[tail.load().astype(int)], minlength=10))
    assert (sizes[0], sizes[-1]) == (10, 100)


def test_photos_are_drawn_from_features_that_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate("abcdefghij"):
        (tmp_path / name).mkdir()
        for image in range(4):
            Image.new("RGB", (4, 4), (20 * number, image, 0)).save(tmp_path / name / f"{image}.jpg")
    asked: list[int] = []

    def computed(files: list[Path], state: Path) -> choose_k_sets.Features:
        asked.append(len(files))
        return np.random.default_rng(0).normal(size=(len(files), 200)).astype(np.float32)

    monkeypatch.setattr(choose_k_sets, "frozen", computed)
    monkeypatch.setattr(choose_k_sets, "OF_A_CLASS", 3)
    whole, three, *_ = choose_k_sets.photo_sets("development", tmp_path, tmp_path)
    assert whole.load().shape == (30, 29)  # 30 centered vectors have 29 dimensions
    assert len(three.load()) == 9
    assert asked == [30, 30]


def test_rows_are_kept_and_a_second_run_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[str] = []

    def toys(part: str, *_: object) -> Iterator[KnownSet]:
        def load() -> choose_k_sets.Features:
            loaded.append(part)
            noise = np.random.default_rng(0).normal(size=(90, 8))
            return (np.eye(3, 8).repeat(30, axis=0) + 0.05 * noise).astype(np.float32)

        yield KnownSet(part, "toys", "three", 3, load)

    monkeypatch.setattr(choose_k_sets, "known_sets", toys)
    monkeypatch.setattr(choose_k, "CANDIDATES", range(2, 7))
    for _ in range(2):
        choose_k.main(["--state", str(tmp_path), "--photos", str(tmp_path)])
    assert loaded == list(choose_k_sets.PARTS)
    (first, _) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert first["clusters"] == first["classes"] == 3
    assert "| development | toys | three | 3 | 3 | yes |" in capsys.readouterr().out


def test_the_tables_count_what_is_right_and_what_is_near() -> None:
    choices = [{"gap": 10, "links": 8}, {"gap": 5, "links": 13}, {"gap": 12, "links": None}]
    rows = [row(choice, name=str(number)) for number, choice in enumerate(choices)]
    rows.append({**row({"gap": 2, "links": 2}, classes=1), "features": NOTHING})
    found = choose_k.tables(rows).splitlines()
    assert found[2] == "| validation | gap | 3 | 33% | 67% | 1.00 |"
    assert found[3] == "| validation | links | 3 | 0% | 33% | 1.05 |"
    assert "| validation | pixels | 3 | 67% | 33% |" in found
    assert "| validation | pixels | 2 | 10 | 12 | yes | links – |" in found
