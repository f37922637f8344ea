"""Labels of the images of a folder, for scores only: from the names of folders or from a table."""

import csv
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from conr.errors import UserError
from conr.text import printable

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
COLUMNS = ("file", "label")
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # the marks with which a spreadsheet's "Unicode text" begins


@dataclass(frozen=True)
class Table:
    """A table of labels.

    Attributes:
        labels: the key of a file (see `_key`) → its label.
        lines: the key of a file → the line that names it, and the name as it stands there.
        layout: columns and separator, for messages.
    """

    labels: dict[str, str]
    lines: dict[str, tuple[int, str]]
    layout: str


def folder_label(file: str, kind: str, skip: int) -> str | None:
    """The label of a file by the folders that hold it.

    Args:
        file: its path, with slashes.
        kind: "folder" for the first folder, "parent" for the last.
        skip: so many of the first folders are no classes.
    """
    folders = file.split("/")[skip:-1]
    if not folders:
        return None
    return folders[0 if kind == "folder" else -1]


def read_table(path: Path) -> Table:
    """A table with the columns file and label, separated by commas, semicolons or tabs.

    Raises:
        UserError: it is no such table, a quote is not closed, or two rows contradict each other.
    """
    lines = list(StringIO(_text(path), newline=""))
    first = lines[0] if lines else ""
    separator = max(SEPARATORS, key=first.count)
    columns = [cell.strip() for cell in next(_cells(path, [first], separator), (1, []))[1]]
    layout = f"columns {', '.join(map(printable, columns)) or 'none'}, separated by {SEPARATORS[separator]}"
    if not set(COLUMNS) <= set(columns):
        raise UserError(f"{path}: the first line must name the columns file and label; found {layout}")
    file_column, label_column = map(columns.index, COLUMNS)
    labels: dict[str, str] = {}
    places: dict[str, tuple[int, str]] = {}
    for line, cells in _cells(path, lines[1:], separator, start=2):
        if len(cells) <= max(file_column, label_column):
            continue
        name, label = cells[file_column].strip(), cells[label_column].strip()
        if "\n" in name + label:
            raise UserError(f"{path}, line {line}: a quote is not closed; close it, or remove it")
        key = _key(name)
        if not label:
            continue
        if labels.setdefault(key, label) != label:
            raise UserError(
                f"{path}, line {line}: {printable(name)} is {printable(label)}, but line {places[key][0]} says "
                f"{printable(labels[key])}; remove one of them"
            )
        places.setdefault(key, (line, name))
    return Table(labels, places, layout)


def by_table(table: Table, files: Sequence[str], name: str) -> tuple[dict[str, str], list[str]]:
    """The labels of files; and what should be known of rows and images that do not match.

    Raises:
        UserError: no image gets a label.
    """
    keys = {file: _key(file) for file in files}
    labels = {file: table.labels[key] for file, key in keys.items() if key in table.labels}
    matched = {keys[file] for file in labels}
    rows = [place for key, place in table.lines.items() if key not in matched]
    without = [file for file in files if file not in labels]
    if not labels:
        example = f"line {rows[0][0]} names {printable(rows[0][1])}" if rows else "no row has a label"
        raise UserError(
            f"prepare.labels: no image gets a label from {name} ({table.layout}): {example}, and the first image is "
            f"{printable(files[0])}; write names as they are below prepare.path, or use labels: none"
        )
    notes = []
    if rows:
        line, file = rows[0]
        notes.append(
            f"{len(rows):,} of {len(table.lines):,} rows of {name} match no image, the first: line {line}, {file}"
        )
    if without:
        notes.append(f"{len(without):,} of {len(files):,} images have no label in {name}, the first: {without[0]}")
    return labels, notes


def doubts(labels: Mapping[str, str | None]) -> list[str]:
    """What makes scores by these labels meaningless."""
    classes = sorted({label for label in labels.values() if label is not None})
    if len(classes) == 1:
        return [f"all labels are the same ({classes[0]}): scores by them say nothing"]
    if len(classes) > 1 and {label.lower() for label in classes} <= SPLITS:
        return [
            f"the labels are {', '.join(classes)}, which are parts of a data set, not classes: scores by them say "
            "nothing; prepare.labels: parent takes the inner folders"
        ]
    return []


def _key(file: str) -> str:
    """What is equal for two ways to write the name of a file: macOS decomposes letters, Windows writes backslashes."""
    return unicodedata.normalize("NFC", file.strip()).replace("\\", "/").removeprefix("./")


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-16" if data.startswith(UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a table in UTF-8 ({error}); save it as CSV in UTF-8") from error


def _cells(path: Path, lines: Sequence[str], separator: str, start: int = 1) -> Iterator[tuple[int, list[str]]]:
    """The number of the line and the cells of each row."""
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        line = start + reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            quote = "unexpected end" in str(error) or "expected after" in str(error)
            cause = "a quote is not closed, or stands inside a cell" if quote else str(error)
            raise UserError(f"{path}, line {line}: {cause}; correct it, and save the table as CSV in UTF-8") from error
        if cells:
            yield line, cells
