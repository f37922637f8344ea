"""ImageNet-10, ImageNet-Dogs and Tiny-ImageNet: folders of JPEG files, one folder per class.

The classes of the first two, in imagenet.csv, are those of Chang et al., Deep Adaptive Image Clustering (ICCV 2017).
"""

import csv
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from conr.data.items import Item, Source, arranged, file_items
from conr.errors import UserError
from conr.parameters import Prepare

SHOWN = 3  # missing classes named in an error
TINY = "tiny-imagenet-200"
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
SUBSETS = {"imagenet10": "ImageNet-10", "imagenet-dogs": "ImageNet-Dogs"}


def imagenet_subset(settings: Prepare) -> Source:
    """ImageNet-10 or ImageNet-Dogs from a local tree of ILSVRC-2012; its validation images are the test split.

    Raises:
        UserError: the tree or a class is missing, or the validation images are not sorted by class.
    """
    name, classes = SUBSETS[settings.source], classes_of(settings.source)
    train_folder = _training_folder(Path(settings.root).expanduser(), name, classes)
    train, skipped = _class_folders(train_folder, name, classes, settings)
    if settings.protocol == "all":
        return arranged(name, settings.protocol, train, skipped=skipped)
    test, skipped_in_val = _class_folders(_validation_folder(train_folder, classes), name, classes, settings)
    return arranged(name, settings.protocol, train, test, skipped=skipped + skipped_in_val)


def classes_of(subset: str) -> dict[str, str]:
    """The wnid and the name of each class of a subset, sorted."""
    lines = (files("conr.data") / "imagenet.csv").read_text(encoding="utf-8").splitlines()
    return {row["wnid"]: row["name"] for row in csv.DictReader(lines) if row["dataset"] == subset}


def _training_folder(root: Path, name: str, classes: Mapping[str, str]) -> Path:
    """The folder below root that holds the folders of the classes."""
    for folder in (root / "train", root / "ILSVRC/Data/CLS-LOC/train", root):
        if any((folder / wnid).is_dir() for wnid in classes):
            return folder.absolute()
    raise UserError(
        f"prepare.root: {root} holds no class of {name}: neither train/<wnid>, nor ILSVRC/Data/CLS-LOC/train/<wnid>, "
        f"nor <wnid> (such as {next(iter(classes))}). prepare.download cannot fetch ILSVRC-2012: get it from "
        "image-net.org, unpack the training images, one folder per class, and set prepare.root to it"
    )


def _validation_folder(train_folder: Path, classes: Mapping[str, str]) -> Path:
    """The folder val beside the training folder; ILSVRC-2012 is delivered with all of them in one folder."""
    folder = train_folder.parent / "val"
    if not folder.is_dir():
        raise UserError(
            f"prepare.protocol: held-out needs the validation images in {folder}/<wnid>/, but {folder} does not exist; "
            "put them there, or use protocol: all"
        )
    if not any((folder / wnid).is_dir() for wnid in classes):
        raise UserError(
            f"prepare.protocol: held-out needs the validation images sorted by class, but {folder} has no folder of a "
            f"class (such as {next(iter(classes))}); move the images into {folder}/<wnid>/, or use protocol: all"
        )
    return folder


def _class_folders(
    folder: Path, name: str, classes: Mapping[str, str], settings: Prepare
) -> tuple[list[Item], list[tuple[str, str]]]:
    """The images in folder/<wnid> of all classes, and (file, reason) of the files there that are none."""
    labels = _labels(folder.parent, {f"{folder.name}/{wnid}": label for wnid, label in classes.items()})
    items, skipped = file_items(folder.parent, labels, settings.image_size, settings.fit)
    found = {item.label for item in items}
    missing = [f"{wnid} ({label})" for wnid, label in classes.items() if label not in found]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise UserError(
            f"prepare.root: {folder} has no images of {len(missing)} of the {len(classes)} classes of {name}: "
            f"{', '.join(missing[:SHOWN])}{more}; unpack them there, one folder per class"
        )
    return items, skipped


def tiny_imagenet(settings: Prepare) -> Source:
    """Tiny-ImageNet's training images; its validation images are the test split, as the test images have no labels.

    Raises:
        UserError: the tree is missing, or its table of the validation images is.
    """
    root = Path(settings.root).expanduser()
    folder = root / TINY if (root / TINY).is_dir() else root
    if not (folder / "train").is_dir() or not any((folder / "train").glob("*/images")):
        raise UserError(
            f"prepare.root: {root} does not hold the folder {TINY} with train/<wnid>/images; unpack {TINY_URL} there"
        )
    wnids = sorted(path.name for path in (folder / "train").iterdir() if (path / "images").is_dir())
    names = _words(folder / "words.txt", wnids)
    labels = _labels(folder, {f"train/{wnid}/images": names[wnid] for wnid in wnids})
    train, skipped = file_items(folder, labels, settings.image_size, settings.fit)
    test: list[Item] = []
    if settings.protocol == "held-out":
        labels = _validation_labels(folder, names)
        test, _ = file_items(folder, labels, settings.image_size, settings.fit)
    return arranged("Tiny-ImageNet", settings.protocol, train, test, skipped=skipped)


def _validation_labels(folder: Path, names: Mapping[str, str]) -> dict[str, str]:
    """The label of every validation image of Tiny-ImageNet, by its file below the folder."""
    table = folder / "val/val_annotations.txt"
    try:
        lines = [line.split("\t") for line in table.read_text().splitlines()]
        return {f"val/images/{file}": names[wnid] for file, wnid, *_ in lines}  # then follow the corners of a box
    except OSError as error:
        raise UserError(
            f"prepare.protocol: held-out needs {table}, which cannot be read; unpack {TINY_URL} again, or use "
            "protocol: all"
        ) from error
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{table}: a line does not name a file and the wnid of a class in {folder}/train ({error}); unpack "
            f"{TINY_URL} again"
        ) from error


def _words(path: Path, wnids: list[str]) -> dict[str, str]:
    """wnid → the first of its words; the wnid itself where there are none, and with it where two classes share one."""
    words = {}
    if path.is_file():
        lines = (line.partition("\t") for line in path.read_text(encoding="utf-8").splitlines())
        words = {wnid: synonyms.split(",")[0].strip() for wnid, _, synonyms in lines}
    names = {wnid: words.get(wnid) or wnid for wnid in wnids}
    shared = Counter(names.values())
    return {wnid: name if shared[name] == 1 else f"{name} ({wnid})" for wnid, name in names.items()}


def _labels(root: Path, folders: Mapping[str, str]) -> dict[str, str]:
    """The label of every file in some folders below the root, in sorted order in each; hidden files are ignored."""
    return {
        f"{folder}/{name}": label
        for folder, label in folders.items()
        for name in sorted(path.name for path in (root / folder).glob("[!.]*") if path.is_file())
    }
