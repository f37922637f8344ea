"""ImageNet-10, ImageNet-Dogs and Tiny-ImageNet: folders of JPEG files, a folder a class.

The classes of the first two are those of Chang et al., Deep Adaptive Image Clustering (ICCV 2017).
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from conr.data.decode import SUFFIXES, decode
from conr.data.items import NOT_AN_IMAGE, Item, Source, arranged
from conr.errors import UserError
from conr.parameters import Prepare

SHOWN = 3  # missing classes named in an error
TINY = "tiny-imagenet-200"
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
IMAGENET_10 = {
    "n02056570": "king penguin",
    "n02085936": "Maltese dog",
    "n02128757": "snow leopard",
    "n02690373": "airliner",
    "n02692877": "airship",
    "n03095699": "container ship",
    "n04254680": "soccer ball",
    "n04285008": "sports car",
    "n04467665": "trailer truck",
    "n07747607": "orange",
}
IMAGENET_DOGS = {
    "n02085936": "Maltese",
    "n02086646": "Blenheim spaniel",
    "n02088238": "basset",
    "n02091467": "Norwegian elkhound",
    "n02097130": "giant schnauzer",
    "n02099601": "golden retriever",
    "n02101388": "Brittany spaniel",
    "n02101556": "clumber",
    "n02102177": "Welsh springer spaniel",
    "n02105056": "groenendael",
    "n02105412": "kelpie",
    "n02105855": "Shetland sheepdog",
    "n02107142": "Doberman",
    "n02110958": "pug",
    "n02112137": "chow",
}


def imagenet_subset(settings: Prepare) -> Source:
    """ImageNet-10 or ImageNet-Dogs from a local tree of ILSVRC-2012; its validation images are the test split.

    Raises:
        UserError: the tree or a class is missing, or the validation images are not sorted by class.
    """
    name, classes = (
        ("ImageNet-10", IMAGENET_10) if settings.source == "imagenet10" else ("ImageNet-Dogs", IMAGENET_DOGS)
    )
    train_folder = _training_folder(Path(settings.root).expanduser(), name, classes)
    train, skipped = _class_folders(train_folder, name, classes, settings)
    if settings.protocol == "all":
        return arranged(name, settings.protocol, train, skipped=skipped)
    val_folder = _validation_folder(train_folder, classes)
    test, skipped_in_val = _class_folders(val_folder, name, classes, settings)
    return arranged(name, settings.protocol, train, test, skipped=skipped + skipped_in_val)


def _training_folder(root: Path, name: str, classes: Mapping[str, str]) -> Path:
    """The folder below root that holds the folders of the classes."""
    for folder in (root / "train", root / "ILSVRC/Data/CLS-LOC/train", root):
        if any((folder / wnid).is_dir() for wnid in classes):
            return folder
    raise UserError(
        f"prepare.root: {root} holds no class of {name}: neither train/<wnid>, nor ILSVRC/Data/CLS-LOC/train/<wnid>, "
        f"nor <wnid> (such as {next(iter(classes))}). prepare.download cannot fetch ILSVRC-2012: get it from "
        "image-net.org, unpack the training images, a folder a class, and set prepare.root to it"
    )


def _validation_folder(train_folder: Path, classes: Mapping[str, str]) -> Path:
    """The folder val beside the training folder; a fresh ILSVRC-2012 has all its images in one heap."""
    folder = train_folder.absolute().parent / "val"
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
    """The images in folder/<wnid> of all classes, and the files there that are none."""
    items: list[Item] = []
    skipped: list[tuple[str, str]] = []
    missing = []
    for wnid, label in classes.items():
        images, others = _files_in(folder / wnid)
        items += [_item(path, f"{folder.name}/{wnid}/{path.name}", label, settings) for path in images]
        skipped += [(f"{folder.name}/{wnid}/{path.name}", NOT_AN_IMAGE) for path in others]
        if not images:
            missing.append(f"{wnid} ({label})")
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise UserError(
            f"prepare.root: {folder} has no images of {len(missing)} of the {len(classes)} classes of {name}: "
            f"{', '.join(missing[:SHOWN])}{more}; unpack them there, a folder a class"
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
    train: list[Item] = []
    skipped: list[tuple[str, str]] = []
    for wnid in wnids:
        images, others = _files_in(folder / "train" / wnid / "images")
        train += [_item(path, path.relative_to(folder).as_posix(), names[wnid], settings) for path in images]
        skipped += [(path.relative_to(folder).as_posix(), NOT_AN_IMAGE) for path in others]
    test = _tiny_validation(folder, names, settings) if settings.protocol == "held-out" else []
    return arranged("Tiny-ImageNet", settings.protocol, train, test, skipped=skipped)


def _tiny_validation(folder: Path, names: Mapping[str, str], settings: Prepare) -> list[Item]:
    table = folder / "val/val_annotations.txt"
    try:
        rows = [line.split("\t") for line in table.read_text().splitlines()]
        wnids = {file: wnid for file, wnid, *_ in rows}  # then follow the corners of a box
        return [
            _item(folder / "val/images" / file, f"val/images/{file}", names[wnid], settings)
            for file, wnid in wnids.items()
        ]
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


def _files_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images and other files, in sorted order; none if there is no such folder. Hidden ones are passed over."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [path for path in paths if not path.name.startswith(".") and path.is_file()]
    return (
        [path for path in files if path.suffix.lower() in SUFFIXES],
        [path for path in files if path.suffix.lower() not in SUFFIXES],
    )


def _item(path: Path, file: str, label: str, settings: Prepare) -> Item:
    label_or_none = label if settings.labels == "dataset" else None
    return Item(file, label_or_none, partial(decode, path, settings.image_size, settings.fit))
