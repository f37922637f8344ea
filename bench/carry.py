"""A folder as numbered parts that are small enough to be carried between machines, and back again.

    python bench/carry.py pack .conr/table2/cifar10-0 .conr/parts      # .conr/parts/0, .conr/parts/1, …: a call each
    python bench/carry.py unpack .conr/parts .conr/table2/cifar10-0

A part is at most 15.5 MiB, and a call's folder holds at most four. Its name says its number, how many there are, and
its checksum; a missing or damaged one is refused. Neither command changes what it reads.
"""

import argparse
import hashlib
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

PART = 31 * 2**19  # bytes: 15.5 MiB
TOGETHER = 4  # parts of a call


def main() -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    arguments = parser.parse_args()
    try:
        count = {"pack": pack, "unpack": unpack}[arguments.action](arguments.source, arguments.destination)
    except (OSError, ValueError) as error:
        sys.exit(f"carry.py: {error}")
    print(f"{count} parts, {-(-count // TOGETHER)} calls")


def pack(folder: Path, parts: Path) -> int:
    """Write a folder's contents as parts; returns how many. Parts that were there before are removed."""
    shutil.rmtree(parts, ignore_errors=True)
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.add(folder, arcname=".")
        count = -(-file.tell() // PART)
        file.seek(0)
        for number in range(count):
            content = file.read(PART)
            place = parts / str(number // TOGETHER)
            place.mkdir(parents=True, exist_ok=True)
            name = f"part-{number:03d}-of-{count:03d}-{hashlib.sha256(content).hexdigest()[:16]}"
            (place / name).write_bytes(content)
    return count


def unpack(parts: Path, folder: Path) -> int:
    """Put the folder back; returns how many parts it came in.

    Raises:
        ValueError: a part is missing, there twice, or damaged; then nothing is written.
    """
    found = sorted(parts.rglob("part-*"), key=lambda path: path.name)
    if not found:
        raise ValueError(f"there are no parts in {parts}")
    count = int(found[0].name.split("-")[3])
    numbers = [int(path.name.split("-")[1]) for path in found]
    if numbers != list(range(count)):
        raise ValueError(f"{parts} holds the parts {numbers}, and should hold 0 to {count - 1}, each once")
    with tempfile.TemporaryFile() as file:
        for path in found:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest()[:16] != path.name.split("-")[4]:
                raise ValueError(f"{path} is damaged: it is not what its name says")
            file.write(content)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            archive.extractall(folder, filter="data")
    return count


if __name__ == "__main__":
    main()
