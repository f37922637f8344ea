"""The data sets of the paper, from small files in exactly their official formats."""

import hashlib
import os
import pickle
import struct
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, STL10

from conr.data.imagenet import classes_of
from conr.data.items import OTHER_SUFFIX, Source
from conr.data.sources import open_source
from conr.errors import UserError
from conr.parameters import Prepare

ARCHIVE = os.environ.get("CONR_CIFAR10_ARCHIVE", "")  # CIFAR-10 as .jpg files in folders named by split and class
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STL10_CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
COARSE = [f"superclass_{number:02d}" for number in range(20)]


def opened(source: str, root: Path, **settings: object) -> Source:
    defaults = {"source": source, "root": str(root), "labels": "dataset"}
    return open_source(Prepare.model_validate(defaults | settings))


def noise(count: int, size: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def pixels(source: Source) -> NDArray[np.uint8]:
    return np.stack([item.read() for item in source.items])


def labels(source: Source) -> list[str | None]:
    return [item.label for item in source.items]


def patch_checksums(monkeypatch: pytest.MonkeyPatch, reader: Any, folder: Path) -> None:
    """Make torchvision expect the files as they are."""

    def md5(name: str) -> str:
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for attribute in ("train_list", "test_list"):
        names = [name for name, _ in getattr(reader, attribute)]
        monkeypatch.setattr(reader, attribute, [[name, md5(name)] for name in names])
    if hasattr(reader, "meta"):
        monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5(reader.meta["filename"])})


# CIFAR


class Python2Pickler(pickle._Pickler):
    """Writes strings and bytes as Python 2 did, which wrote the official files: both as byte strings."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        head = b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))
        self.write(head + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def write_pickle(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)


def rows(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, 32, 32, 3) → (N, 3072): the red plane row by row, then green, then blue."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), 3072))


def write_cifar10(root: Path, train: NDArray[np.uint8], test: NDArray[np.uint8], classes: list[list[int]]) -> Path:
    """Official files: five training batches, the test batch, the names of the classes."""
    folder = root / "cifar-10-batches-py"
    for number, (images, numbers) in enumerate(
        zip(np.array_split(train, 5), np.array_split(np.array(classes[0]), 5), strict=True), start=1
    ):
        write_batch(folder / f"data_batch_{number}", f"training batch {number} of 5", images, numbers.tolist())
    write_batch(folder / "test_batch", "testing batch 1 of 1", test, classes[1])
    meta = {"num_cases_per_batch": 10000, "label_names": CIFAR10_CLASSES, "num_vis": 3072}
    write_pickle(folder / "batches.meta", meta)
    return folder


def write_batch(path: Path, name: str, images: NDArray[np.uint8], numbers: list[int]) -> None:
    files = [f"image_s_{number:06d}.png" for number in range(len(images))]
    write_pickle(path, {"batch_label": name, "labels": numbers, "data": rows(images), "filenames": files})


TRAIN, TEST = noise(12, 32, 0), noise(4, 32, 1)
CLASSES = [[0, 9, 3, 3, 1, 2, 4, 5, 6, 7, 8, 0], [9, 8, 7, 0]]


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_cifar10(tmp_path, TRAIN, TEST, CLASSES)
    patch_checksums(monkeypatch, CIFAR10, folder)
    return tmp_path


def test_cifar10_is_the_training_images_then_the_test_images(cifar10: Path) -> None:
    source = opened("cifar10", cifar10)
    np.testing.assert_array_equal(pixels(source), np.concatenate([TRAIN, TEST]))
    assert labels(source) == [CIFAR10_CLASSES[number] for number in CLASSES[0] + CLASSES[1]]
    assert [item.file for item in source.items[10:14]] == ["train/000010", "train/000011", "test/000000", "test/000001"]
    assert (source.name, source.train_count, source.score_start, source.skipped) == ("CIFAR-10", 16, 0, [])


def test_cifar10_held_out(cifar10: Path) -> None:
    source = opened("cifar10", cifar10, protocol="held-out")
    np.testing.assert_array_equal(pixels(source), np.concatenate([TRAIN, TEST]))
    assert (source.train_count, source.score_start) == (12, 12)


def test_a_long_tail_of_cifar10_held_out(cifar10: Path) -> None:
    source = opened("cifar10", cifar10, protocol="held-out", imbalance=2.0)
    train = Counter(item.label for item in source.items[: source.train_count])
    assert train == dict.fromkeys(CIFAR10_CLASSES, 1) | {"airplane": 2, "cat": 2}  # 2 × 2^(−3/9) is 1.59
    assert labels(source)[source.score_start :] == ["truck", "ship", "horse", "airplane"]


def test_other_sizes_are_resized(cifar10: Path) -> None:
    assert opened("cifar10", cifar10, image_size=16).items[0].read().shape == (16, 16, 3)


@pytest.mark.parametrize("name", ["cifar10", "cifar20", "stl10", "imagenet10", "imagenet-dogs", "tiny-imagenet"])
@pytest.mark.parametrize("kind", ["folder", "parent", "csv"])
def test_data_sets_refuse_the_labels_of_a_folder(tmp_path: Path, name: str, kind: str) -> None:
    with pytest.raises(UserError, match=rf"^prepare\.labels: {kind} .*prepare\.source: {name}"):
        opened(name, tmp_path, labels=kind)


def test_cifar10_without_labels(cifar10: Path) -> None:
    assert set(labels(opened("cifar10", cifar10, labels="none"))) == {None}


def test_the_root_may_be_written_with_a_tilde(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(cifar10))
    assert len(opened("cifar10", Path("~")).items) == 16


@pytest.mark.skipif(not Path(ARCHIVE).is_file(), reason="CONR_CIFAR10_ARCHIVE names no archive of images")
def test_real_images_survive_the_official_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images: dict[str, list[NDArray[np.uint8]]] = {"train": [], "test": []}
    numbers: dict[str, list[int]] = {"train": [], "test": []}
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            if not member.name.endswith(".jpg") or int(Path(member.name).stem) >= 15:
                continue
            _, split, name, _ = member.name.split("/")
            with Image.open(archive.extractfile(member)) as image:  # type: ignore[arg-type]
                images[split].append(np.asarray(image.convert("RGB")))
            numbers[split].append(CIFAR10_CLASSES.index(name))
    assert {split: len(found) for split, found in images.items()} == {"train": 150, "test": 150}
    train, test = np.stack(images["train"]), np.stack(images["test"])
    folder = write_cifar10(tmp_path, train, test, [numbers["train"], numbers["test"]])
    patch_checksums(monkeypatch, CIFAR10, folder)
    source = opened("cifar10", tmp_path, protocol="held-out")
    np.testing.assert_array_equal(pixels(source), np.concatenate([train, test]))
    assert labels(source) == [CIFAR10_CLASSES[number] for number in numbers["train"] + numbers["test"]]
    assert (source.train_count, source.score_start) == (150, 150)


COARSE_LABELS = {"train": [19, 0, 4, 4, 11], "test": [2, 1, 19]}


def write_cifar100(root: Path) -> Path:
    folder = root / "cifar-100-python"
    for seed, (split, coarse) in enumerate(COARSE_LABELS.items(), start=2):
        content = {
            "filenames": [f"image_s_{number:06d}.png" for number in range(len(coarse))],
            "batch_label": f"{split}ing batch 1 of 1",
            "fine_labels": list(range(99, 99 - len(coarse), -1)),  # fine labels must not be taken for coarse ones
            "coarse_labels": coarse,
            "data": rows(noise(len(coarse), 32, seed)),
        }
        write_pickle(folder / split, content)
    fine = [f"class_{number:02d}" for number in range(100)]
    write_pickle(folder / "meta", {"fine_label_names": fine, "coarse_label_names": COARSE})
    return folder


@pytest.mark.parametrize(("protocol", "train_count", "score_start"), [("all", 8, 0), ("held-out", 5, 5)])
def test_cifar20_has_the_superclasses_of_cifar100(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, train_count: int, score_start: int
) -> None:
    patch_checksums(monkeypatch, CIFAR100, write_cifar100(tmp_path))
    source = opened("cifar20", tmp_path, protocol=protocol)
    np.testing.assert_array_equal(pixels(source), np.concatenate([noise(5, 32, 2), noise(3, 32, 3)]))
    assert labels(source) == [COARSE[number] for number in [19, 0, 4, 4, 11, 2, 1, 19]]
    assert (source.train_count, source.score_start) == (train_count, score_start)


# STL-10

STL_PARTS = {"unlabeled": noise(7, 96, 4), "train": noise(5, 96, 5), "test": noise(3, 96, 6)}
STL_LABELS = {"train": [1, 10, 2, 2, 5], "test": [10, 3, 1]}


def write_stl10(root: Path) -> Path:
    """Official files: planes column by column, labels from 1, names and folds as text."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for split, images in STL_PARTS.items():
        (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
    for split, numbers in STL_LABELS.items():
        (folder / f"{split}_y.bin").write_bytes(bytes(numbers))
    (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in STL10_CLASSES))
    (folder / "fold_indices.txt").write_text("0 1 2 \n" * 10)
    return folder


@pytest.fixture
def stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    patch_checksums(monkeypatch, STL10, write_stl10(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("protocol", "train_count", "score_start"), [("all", 15, 7), ("held-out", 12, 12)])
def test_stl10_is_unlabeled_then_training_then_test_images(
    stl10: Path, protocol: str, train_count: int, score_start: int
) -> None:
    source = opened("stl10", stl10, protocol=protocol, image_size=96)
    np.testing.assert_array_equal(pixels(source), np.concatenate(list(STL_PARTS.values())))
    expected = [STL10_CLASSES[number - 1] for number in STL_LABELS["train"] + STL_LABELS["test"]]
    assert labels(source) == [None] * 7 + expected
    assert (source.train_count, source.score_start) == (train_count, score_start)
    assert [source.items[number].file for number in (0, 7, 12)] == ["unlabeled/000000", "train/000000", "test/000000"]


def test_stl10_without_labels_still_scores_the_same_images(stl10: Path) -> None:
    source = opened("stl10", stl10, labels="none")
    assert set(labels(source)) == {None}
    assert source.score_start == 7


def test_stl10_has_no_long_tail(stl10: Path) -> None:
    with pytest.raises(UserError, match=r"^prepare\.imbalance: 5 .* 7 of 15 .*STL-10"):
        opened("stl10", stl10, imbalance=5.0)


def test_stl10_without_the_names_of_its_classes(stl10: Path) -> None:
    (stl10 / "stl10_binary/class_names.txt").unlink()
    with pytest.raises(UserError, match=r"^prepare\.root: .*class_names\.txt .*http.*stl10_binary"):
        opened("stl10", stl10)


# Missing files, wrong checksums, downloads

DOWNLOADED = [
    ("cifar10", "cifar-10-batches-py", "cifar", lambda root: write_cifar10(root, TRAIN, TEST, CLASSES), CIFAR10, 16),
    ("cifar20", "cifar-100-python", "cifar", write_cifar100, CIFAR100, 8),
    ("stl10", "stl10_binary", "stl10", write_stl10, STL10, 15),
]
each_download = pytest.mark.parametrize(("name", "folder", "module", "write", "reader", "count"), DOWNLOADED)


@each_download
def test_missing_files_are_named_with_the_key_that_fetches_them(
    tmp_path: Path, name: str, folder: str, module: str, write: Any, reader: Any, count: int
) -> None:
    message = rf"^prepare\.root: {tmp_path} .* {folder} .*prepare\.download: true"
    with pytest.raises(UserError, match=message):
        opened(name, tmp_path)


@each_download
def test_files_with_other_checksums_are_refused(
    tmp_path: Path, name: str, folder: str, module: str, write: Any, reader: Any, count: int
) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}/{folder} .*\(wrong checksum"):
        opened(name, tmp_path)


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_single_missing_file_is_noticed(cifar10: Path, file: str) -> None:
    (cifar10 / "cifar-10-batches-py" / file).unlink()
    with pytest.raises(UserError, match=r"damaged .*prepare\.download: true"):
        opened("cifar10", cifar10)


@each_download
def test_what_is_missing_is_downloaded_into_root(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    folder: str,
    module: str,
    write: Callable[[Path], Path],
    reader: Any,
    count: int,
) -> None:
    calls = []

    def download(url: str, root: str | Path, filename: str, md5: str) -> None:
        calls.append((url, Path(root), md5))
        patch_checksums(monkeypatch, reader, write(Path(root)))

    monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", download)
    assert len(opened(name, tmp_path / "data", download=True).items) == count
    assert calls == [(reader.url, tmp_path / "data", reader.tgz_md5)]
    assert len(opened(name, tmp_path / "data", download=True).items) == count  # nothing to fetch any more
    assert len(calls) == 1


@each_download
@pytest.mark.parametrize("error", [URLError("no route to host"), OSError("no space left"), ConnectionResetError("x")])
def test_a_failed_download_says_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    folder: str,
    module: str,
    write: Any,
    reader: Any,
    count: int,
    error: Exception,
) -> None:
    def download(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", download)
    with pytest.raises(UserError, match=r"^prepare\.download: .*http.*network"):
        opened(name, tmp_path, download=True)


def test_a_damaged_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> None:
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)
    with pytest.raises(UserError, match=r"\(wrong checksum\)"):
        opened("cifar10", tmp_path, download=True)


# ImageNet

IMAGENET_10, IMAGENET_DOGS = classes_of("imagenet10"), classes_of("imagenet-dogs")
COLORS = {wnid: (20 * number, 250 - 20 * number, 7) for number, wnid in enumerate(IMAGENET_10)}


def write_jpeg(path: Path, color: tuple[int, int, int] = (9, 9, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), color).save(path, "JPEG", quality=95)


def write_imagenet10(train: Path) -> None:
    for wnid, color in COLORS.items():
        for number in (10, 2):
            write_jpeg(train / wnid / f"{wnid}_{number}.JPEG", color)
    write_jpeg(train / "n01440764/n01440764_1.JPEG")  # a class of ImageNet that is not one of the ten


@pytest.mark.parametrize("layout", ["train", "ILSVRC/Data/CLS-LOC/train", "."])
def test_imagenet10_in_each_layout(tmp_path: Path, layout: str) -> None:
    write_imagenet10(tmp_path / layout)
    source = opened("imagenet10", tmp_path)
    assert labels(source) == [name for name in IMAGENET_10.values() for _ in range(2)]
    files = [f"{wnid}/{wnid}_{number}.JPEG" for wnid in IMAGENET_10 for number in (10, 2)]
    assert [item.file.partition("/")[2] for item in source.items] == files
    assert (source.name, source.train_count, source.score_start) == ("ImageNet-10", 20, 0)
    for item, color in zip(source.items[::2], COLORS.values(), strict=True):
        np.testing.assert_allclose(item.read()[16, 16], color, atol=3)
    assert source.items[0].read().shape == (32, 32, 3)


def test_there_are_ten_classes_and_fifteen_dogs_with_names_of_their_own() -> None:
    assert len(set(IMAGENET_10.values())) == len(IMAGENET_10) == 10
    assert len(set(IMAGENET_DOGS.values())) == len(IMAGENET_DOGS) == 15
    assert list(IMAGENET_10) == sorted(IMAGENET_10)
    assert list(IMAGENET_DOGS) == sorted(IMAGENET_DOGS)


def test_imagenet_dogs(tmp_path: Path) -> None:
    for wnid in IMAGENET_DOGS:
        write_jpeg(tmp_path / "train" / wnid / "1.JPEG")
    source = opened("imagenet-dogs", tmp_path)
    assert labels(source) == list(IMAGENET_DOGS.values())
    assert source.name == "ImageNet-Dogs"
    assert set(labels(opened("imagenet-dogs", tmp_path, labels="none"))) == {None}


@pytest.mark.parametrize("layout", ["train", "ILSVRC/Data/CLS-LOC/train", "."])
def test_imagenet_held_out_has_the_validation_images_beside_the_training_folder(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "root"
    write_imagenet10(root / layout)
    val = (root / layout).resolve().parent / "val"
    for wnid in reversed(IMAGENET_10):
        write_jpeg(val / wnid / "ILSVRC2012_val_00000001.JPEG")
    source = opened("imagenet10", root, protocol="held-out")
    assert (source.train_count, source.score_start, len(source.items)) == (20, 20, 30)
    assert labels(source)[20:] == list(IMAGENET_10.values())
    assert source.items[20].file == "val/n02056570/ILSVRC2012_val_00000001.JPEG"
    assert len(opened("imagenet10", root, protocol="all").items) == 20


def test_validation_images_that_are_not_sorted_by_class(tmp_path: Path) -> None:
    write_imagenet10(tmp_path / "train")
    with pytest.raises(UserError, match=rf"^prepare\.protocol: held-out .* {tmp_path}/val does not exist"):
        opened("imagenet10", tmp_path, protocol="held-out")
    write_jpeg(tmp_path / "val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(UserError, match=rf"^prepare\.protocol: held-out .* {tmp_path}/val has no folder"):
        opened("imagenet10", tmp_path, protocol="held-out")


def test_missing_classes_are_named_once(tmp_path: Path) -> None:
    for wnid in list(IMAGENET_10)[5:]:
        write_jpeg(tmp_path / "train" / wnid / "1.JPEG")
    (tmp_path / "train/n02056570").mkdir()  # a folder without images is as good as none
    with pytest.raises(UserError) as caught:
        opened("imagenet10", tmp_path)
    assert (
        f"{tmp_path}/train has no images of 5 of the 10 classes of ImageNet-10: n02056570 (king penguin), "
        "n02085936 (Maltese dog), n02128757 (snow leopard) and 2 more"
    ) in str(caught.value)


def test_a_tree_without_any_class_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^prepare\.root: {tmp_path} .*ImageNet-Dogs: .*train/"):
        opened("imagenet-dogs", tmp_path)


def test_other_files_among_the_images_are_listed(tmp_path: Path) -> None:
    write_imagenet10(tmp_path / "train")
    (tmp_path / "train/n02690373/list.txt").touch()
    (tmp_path / "train/n02690373/.DS_Store").touch()
    source = opened("imagenet10", tmp_path)
    assert source.skipped == [("train/n02690373/list.txt", OTHER_SUFFIX)]
    assert len(source.items) == 20


# Tiny-ImageNet

WORDS = "n01443537\tgoldfish, Carassius auratus\nn02012849\tcrane\nn03126707\tcrane, machine\nn99999999\tnot here\n"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-imagenet-200"
    for wnid in ("n03126707", "n01443537", "n02012849", "n01629819"):
        for number in range(2):
            write_jpeg(folder / f"train/{wnid}/images/{wnid}_{number}.JPEG", (int(wnid[-2:]), 100, 50 * number))
        (folder / f"train/{wnid}/{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    (folder / "words.txt").write_text(WORDS)
    annotations = [("val_0.JPEG", "n03126707"), ("val_1.JPEG", "n01443537"), ("val_10.JPEG", "n01443537")]
    for number, (file, _) in enumerate(annotations):
        write_jpeg(folder / "val/images" / file, (0, 0, 80 * number))
    lines = "".join(f"{file}\t{wnid}\t0\t32\t44\t62\n" for file, wnid in annotations)
    (folder / "val/val_annotations.txt").write_text(lines)
    write_jpeg(folder / "test/images/test_0.JPEG")
    return tmp_path


TINY_LABELS = ["goldfish", "goldfish", "n01629819", "n01629819"]
TINY_LABELS += ["crane (n02012849)", "crane (n02012849)", "crane (n03126707)", "crane (n03126707)"]


@pytest.mark.parametrize("inside", [False, True])
def test_tiny_imagenet_is_its_training_images(tiny: Path, inside: bool) -> None:
    source = opened("tiny-imagenet", tiny / "tiny-imagenet-200" if inside else tiny)
    assert labels(source) == TINY_LABELS
    assert source.items[0].file == "train/n01443537/images/n01443537_0.JPEG"
    np.testing.assert_allclose(source.items[1].read()[16, 16], (37, 100, 50), atol=3)
    assert (source.train_count, source.score_start, source.skipped) == (8, 0, [])


def test_tiny_imagenet_held_out(tiny: Path) -> None:
    source = opened("tiny-imagenet", tiny, protocol="held-out")
    assert labels(source) == [*TINY_LABELS, "crane (n03126707)", "goldfish", "goldfish"]
    assert [item.file for item in source.items[8:]] == [f"val/images/val_{number}.JPEG" for number in (0, 1, 10)]
    np.testing.assert_allclose(source.items[9].read()[16, 16], (0, 0, 80), atol=3)
    assert (source.train_count, source.score_start) == (8, 8)


def test_tiny_imagenet_without_words_is_labeled_by_wnid(tiny: Path) -> None:
    (tiny / "tiny-imagenet-200/words.txt").unlink()
    assert labels(opened("tiny-imagenet", tiny))[::2] == ["n01443537", "n01629819", "n02012849", "n03126707"]


def test_tiny_imagenet_that_is_not_there(tmp_path: Path) -> None:
    message = rf"^prepare\.root: {tmp_path} .*tiny-imagenet-200 .*http"
    with pytest.raises(UserError, match=message):
        opened("tiny-imagenet", tmp_path)


@pytest.mark.parametrize("line", ["val_0.JPEG n01443537", "val_0.JPEG\tn00000000\t0\t1\t2\t3"])
def test_tiny_imagenet_with_a_damaged_table(tiny: Path, line: str) -> None:
    (tiny / "tiny-imagenet-200/val/val_annotations.txt").write_text(line + "\n")
    with pytest.raises(UserError, match=r"val_annotations\.txt: .*wnid"):
        opened("tiny-imagenet", tiny, protocol="held-out")


def test_tiny_imagenet_without_its_table(tiny: Path) -> None:
    (tiny / "tiny-imagenet-200/val/val_annotations.txt").unlink()
    with pytest.raises(UserError, match=r"^prepare\.protocol: held-out .*val_annotations\.txt"):
        opened("tiny-imagenet", tiny, protocol="held-out")
    assert len(opened("tiny-imagenet", tiny).items) == 8
