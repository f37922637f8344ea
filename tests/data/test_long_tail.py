"""Class sizes of a long tail: the exponential profile, and which items are kept."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conr.data.long_tail import long_tail, long_tail_sizes
from conr.data.sources import Source, open_source
from conr.errors import UserError
from conr.parameters import Prepare

SIZES = st.lists(st.integers(1, 5000), min_size=2, max_size=30)
RATIOS = st.floats(1, 1000)


# Sizes


def test_sizes_of_cifar10_are_those_of_the_papers_on_long_tails() -> None:
    assert long_tail_sizes([5000] * 10, 100) == [5000, 2997, 1797, 1077, 646, 387, 232, 139, 83, 50]
    assert long_tail_sizes([5000] * 10, 10) == [5000, 3871, 2997, 2321, 1797, 1391, 1077, 834, 646, 500]


def test_no_class_keeps_more_than_it_has() -> None:
    assert long_tail_sizes([10, 3, 100], 100) == [10, 3, 1]


def test_every_class_keeps_an_item() -> None:
    assert long_tail_sizes([4, 4, 4], 1000) == [4, 1, 1]


@given(sizes=SIZES, ratio=RATIOS)
def test_sizes_follow_the_profile_within_what_there_is(sizes: list[int], ratio: float) -> None:
    kept = long_tail_sizes(sizes, ratio)
    assert len(kept) == len(sizes)
    for number, (size, there) in enumerate(zip(kept, sizes, strict=True)):
        wanted = max(sizes) * ratio ** (-number / (len(sizes) - 1))
        assert 1 <= size <= there
        assert size in (1, there) or abs(size - wanted) <= 0.5 + 1e-6
        if size == there:
            assert there <= wanted + 0.5 + 1e-6 or there == 1


@given(count=st.integers(2, 30), size=st.integers(1, 5000), ratio=RATIOS)
def test_balanced_classes_shrink_from_the_whole_class_to_its_share(count: int, size: int, ratio: float) -> None:
    kept = long_tail_sizes([size] * count, ratio)
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == size
    assert kept[-1] == max(1, round(size / ratio)) or abs(kept[-1] - size / ratio) <= 0.5 + 1e-6


# Items


@given(
    labels=st.lists(st.sampled_from("abcdef"), min_size=2, max_size=300).filter(lambda drawn: len(set(drawn)) > 1),
    ratio=RATIOS,
)
def test_kept_items_are_ascending_and_as_many_of_each_class_as_wanted(labels: list[str], ratio: float) -> None:
    kept = long_tail(labels, ratio)
    assert (np.diff(kept) > 0).all()
    assert kept.min() >= 0
    assert kept.max() < len(labels)
    sizes = Counter(labels)
    wanted = long_tail_sizes([sizes[name] for name in sorted(sizes)], ratio)
    assert Counter(labels[index] for index in kept) == dict(zip(sorted(sizes), wanted, strict=True))


def test_classes_shrink_in_the_order_of_their_names_wherever_they_stand() -> None:
    labels = ["zebra"] * 100 + ["ant"] * 100 + ["cat"] * 100
    kept = long_tail(labels, 100)
    assert Counter(labels[index] for index in kept) == {"ant": 100, "cat": 10, "zebra": 1}


def test_the_same_items_are_kept_every_time_and_not_just_the_first() -> None:
    labels = ["a", "b"] * 500
    kept = long_tail(labels, 10)
    np.testing.assert_array_equal(kept, long_tail(labels, 10))
    of_b = kept[kept % 2 == 1]
    assert len(of_b) == 50
    assert of_b.max() > 500
    assert of_b.tolist() != list(range(1, 100, 2))


def test_a_longer_tail_is_part_of_a_shorter_one() -> None:
    labels = list("abcde") * 100
    assert set(long_tail(labels, 50).tolist()) < set(long_tail(labels, 5).tolist())


# Sources


def digits(**settings: object) -> Source:
    return open_source(Prepare.model_validate({"source": "digits", "labels": "dataset", **settings}))


def sizes(source: Source, part: slice) -> list[int]:
    found = Counter(item.label for item in source.items[part])
    return [found[str(digit)] for digit in range(10)]


def test_a_long_tail_of_digits() -> None:
    whole, tail = digits(), digits(imbalance=20.0)
    before = sizes(whole, slice(None))
    assert sizes(tail, slice(None)) == long_tail_sizes(before, 20)
    assert (tail.train_count, tail.score_start) == (len(tail.items), 0)
    position = {item.file: number for number, item in enumerate(whole.items)}
    positions = [position[item.file] for item in tail.items]
    assert positions == sorted(positions)
    kept = tail.items[100]
    original = whole.items[position[kept.file]]
    assert kept.label == original.label
    np.testing.assert_array_equal(kept.read(), original.read())


def test_the_test_part_stays_balanced() -> None:
    whole, tail = digits(protocol="held-out"), digits(protocol="held-out", imbalance=20.0)
    train = slice(whole.train_count)
    assert sizes(tail, slice(tail.train_count)) == long_tail_sizes(sizes(whole, train), 20)
    assert tail.score_start == tail.train_count < whole.train_count
    held_out = [item.file for item in whole.items[whole.score_start :]]
    assert [item.file for item in tail.items[tail.score_start :]] == held_out
    files = [item.file for item in tail.items]
    assert files == sorted(files)


def test_without_imbalance_everything_stays() -> None:
    assert len(digits(imbalance=1.0).items) == 1797


def test_a_long_tail_needs_labels() -> None:
    message = r"^prepare\.imbalance: 20 .*prepare\.labels .*dataset"
    with pytest.raises(UserError, match=message):
        digits(labels="none", imbalance=20.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 8), ("test", 4)):
        for name in ("ant", "cat"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (4, 4)).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def of_folder(path: Path, **settings: object) -> Source:
    return open_source(Prepare.model_validate({"path": str(path), "imbalance": 4.0, **settings}))


def test_a_long_tail_of_a_folder(folder: Path) -> None:
    source = of_folder(folder, labels="parent")
    assert Counter(item.label for item in source.items) == {"ant": 12, "cat": 3}
    source = of_folder(folder, labels="parent", protocol="held-out")
    assert Counter(item.label for item in source.items[: source.train_count]) == {"ant": 8, "cat": 2}
    assert Counter(item.label for item in source.items[source.score_start :]) == {"ant": 4, "cat": 4}
    assert (source.train_count, source.score_start, len(source.items)) == (10, 10, 18)


def test_a_long_tail_of_a_folder_needs_labels(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"^prepare\.imbalance: .*prepare\.labels .*folder, parent or csv.* imbalance .*1"
    ):
        of_folder(folder)


def test_a_long_tail_needs_the_labels_of_all_images(folder: Path) -> None:
    Image.new("RGB", (4, 4)).save(folder / "loose.png")
    with pytest.raises(UserError, match=r"^prepare\.imbalance: .* 1 of 25 "):
        of_folder(folder, labels="parent")


def test_labels_of_the_test_part_are_not_needed(folder: Path) -> None:
    Image.new("RGB", (4, 4)).save(folder / "test/loose.png")
    source = of_folder(folder, labels="parent", protocol="held-out")
    assert [item.file for item in source.items if item.label is None] == ["test/loose.png"]


def test_one_class_has_no_tail(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^prepare\.imbalance: .* 1$"):
        of_folder(folder / "train/ant", labels="csv", labels_file=write_table(folder / "train/ant"))


def write_table(folder: Path) -> str:
    lines = [f"{path.name},ant" for path in sorted(folder.glob("*.png"))]
    (folder / "labels.csv").write_text("file,label\n" + "\n".join(lines))
    return "labels.csv"
