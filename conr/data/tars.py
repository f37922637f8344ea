"""Images in WebDataset shards: tar files in which members of one name, but for the suffix, are one sample.

Nothing is unpacked: each image is read from its place in the tar file.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from conr.data.decode import decode_part
from conr.data.folders import files_below
from conr.data.formats import SUFFIXES
from conr.data.items import Item
from conr.errors import UserError, one_line
from conr.parameters import Prepare

NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # of a member: key of the sample, and suffix
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Member(NamedTuple):
    """A file in a tar file.

    Attributes:
        key: of the sample that it belongs to.
        suffix: what follows the first dot of its name, in lower case.
        name: of the member.
        offset, size: where its content is, in bytes.
    """

    key: str
    suffix: str
    name: str
    offset: int
    size: int


def samples_below(root: Path, name: str, settings: Prepare) -> tuple[list[Item], list[tuple[str, str]]]:
    """The images of all samples in the tar files below a folder; and (file, reason) of what is left out.

    The tar files are in sorted order, their samples as they come. A sample's image is its first member whose suffix is
    that of an image. An image is called after its tar file and its member: shards/0001.tar/cat/17.jpg.

    Args:
        root: the folder.
        name: what to call it in messages.
        settings: size and fit of the images, patterns to leave out, and whether labels are read: "label" in a member
            .json, or else the text of a member .cls.

    Raises:
        UserError: there is no image, or no label, or a tar file is damaged or compressed.
    """
    files, left_out = files_below(root, name, settings.exclude)
    items: list[Item] = []
    for file in files:
        if file.lower().endswith(COMPRESSED):
            raise UserError(f"{root / file} is compressed, so that no image in it can be found directly; uncompress it")
        if not file.lower().endswith(".tar"):
            left_out.append((file, "not a tar file by the suffix of its name"))
            continue
        path = f"{root}/{file}"
        for key, members in groupby(_members(path), itemgetter(0)):
            sample = {member.suffix: member for member in members}
            image = next((member for suffix, member in sample.items() if f".{suffix}" in SUFFIXES), None)
            if image is None:
                left_out.append((f"{file}/{key}", "a sample without an image"))
                continue
            read = partial(decode_part, path, image.offset, image.size, settings.image_size, settings.fit)
            label = _label(path, sample) if settings.labels == "dataset" else None
            items.append(Item(f"{file}/{image.name}", label, read))
    if not items:
        raise UserError(f"{name} holds no tar file with an image at any depth; {len(left_out)} other files")
    if settings.labels == "dataset" and not any(item.label for item in items):
        raise UserError(
            f'prepare.labels: no image in {root} has a label ("label" in a member .json, or a member .cls); use none'
        )
    return items, sorted(left_out)


def _members(path: str) -> Iterator[Member]:
    """The files in a tar file, in its order, that belong to a sample."""
    try:
        with tarfile.open(path, "r:") as archive:
            while (found := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined] # it would keep a kilobyte of each
                match = NAME.fullmatch(found.name)
                if match and found.isreg():
                    yield Member(match[1], match[2].lower(), found.name, found.offset_data, found.size)
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"{path} is no tar file, or damaged ({one_line(error)}); write it again, or leave it out (conr prepare: "
            "prepare.exclude)"
        ) from error


def _label(path: str, sample: dict[str, Member]) -> str | None:
    if "json" in sample:
        content = _content(path, sample["json"])
        try:
            facts = json.loads(content)
        except ValueError as error:
            raise UserError(f"{path}: {sample['json'].name} is no JSON ({one_line(error)}); write it again") from error
        if isinstance(facts, dict) and facts.get("label") not in (None, ""):
            return str(facts["label"])
    return _content(path, sample["cls"]).decode(errors="replace").strip() or None if "cls" in sample else None


def _content(path: str, member: Member) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123
        file.seek(member.offset)
        return file.read(member.size)
