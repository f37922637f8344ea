"""Tables of labels as people make them: in other programs, on other systems, with mistakes in them."""

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from conr.data.items import Source
from conr.data.sources import open_source
from conr.errors import UserError
from conr.parameters import Prepare

DECOMPOSED = unicodedata.normalize("NFD", "Müller_2.png")
FILES = ("img_00.png", "sub/img_01.JPG", DECOMPOSED, "My pic 3.png")
LABELS = {"img_00.png": "disc", "sub/img_01.JPG": "box", DECOMPOSED: "tri", "My pic 3.png": "disc"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, file in enumerate(FILES):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 6), (number, 0, 0)).save(tmp_path / file)
    return tmp_path


def labeled(root: Path, table: str | bytes, **settings: object) -> Source:
    content = table.encode() if isinstance(table, str) else table
    (root / "labels.csv").write_bytes(content)
    values = {"source": "folder", "path": str(root), "labels": "csv", "image_size": 6, **settings}
    return open_source(Prepare.model_validate(values))


def labels(source: Source) -> dict[str, str | None]:
    return {item.file: item.label for item in source.items}


def table(separator: str = ",", names: tuple[str, ...] = tuple(LABELS)) -> str:
    rows = zip(("file", *names), ("label", *LABELS.values()), strict=True)
    return "".join(f"{name}{separator}{label}\n" for name, label in rows)


def message(root: Path, content: str | bytes) -> str:
    with pytest.raises(UserError) as caught:
        labeled(root, content)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        table(),
        table(", "),
        table(";"),
        table("\t"),
        table(" , "),
        table(names=("img_00.png", "sub\\img_01.JPG", "Müller_2.png", "My pic 3.png")),
        table(names=("./img_00.png", ".\\sub\\img_01.JPG", DECOMPOSED, " My pic 3.png ")),
        table().encode("utf-16"),
        table().replace("\n", "\r\n").encode("utf-8-sig"),
        table().replace("\n", "\r"),
        table().replace("disc", "disc "),
        table() + "img_00.png,disc\n\n",
    ],
)
def test_tables_of_other_programs_and_systems_are_read(images: Path, content: str | bytes) -> None:
    source = labeled(images, content)
    assert labels(source) == LABELS
    assert source.notes == []
    assert source.skipped == []


def test_rows_and_images_without_a_partner_are_counted_with_the_first_of_each(images: Path) -> None:
    content = "file,label\nimg_00.png,disc\nIMG_01.jpg,box\ngone.png,box\nsub/img_01.JPG,box\n"
    source = labeled(images, content)
    assert source.notes == [
        "2 of 4 rows of labels.csv match no image, the first: line 3, IMG_01.jpg",
        "2 of 4 images have no label in labels.csv, the first: " + DECOMPOSED,
    ]


def test_rows_that_contradict_each_other_are_refused(images: Path) -> None:
    content = table() + "sub\\img_01.JPG,disc\n"
    expected = r"labels.csv, line 6: sub\img_01.JPG is disc, but line 3 says box; remove one of them"
    assert message(images, content).endswith(expected)


def test_what_matches_nothing_is_shown_with_an_example_of_either_side(images: Path) -> None:
    found = message(images, "id;file;label\n1;img_00;disc\n2;img_01;box\n")
    assert "labels.csv (columns id, file, label, separated by semicolons)" in found
    assert f"line 2 names img_00, and the first image is {sorted(FILES)[0]}" in found


def test_missing_columns_are_shown_with_those_that_were_found(images: Path) -> None:
    found = message(images, "name;class\nimg_00.png;disc\n")
    assert found.endswith(
        "the first line must name the columns file and label; found columns name, class, separated by semicolons"
    )


@pytest.mark.parametrize(
    "content",
    [
        'file,label\nimg_00.png,disc\nsub/img_01.JPG,"box\nMy pic 3.png,disc\n',
        'file,label\nimg_00.png,disc\nsub/img_01.JPG,"box\nMy pic 3.png,"disc"\n',
        'file,label\nimg_00.png,disc\nsub/img_01.JPG,"box\nMy pic 3.png,disc"\n',
        'file,label\nimg_00.png,disc\n"sub/img_01.JPG,box\nMy pic 3.png",disc\n',
    ],
)
def test_a_quote_that_is_not_closed_is_an_error_that_names_its_line(images: Path, content: str) -> None:
    assert "labels.csv, line 3: a quote is not closed" in message(images, content)


def test_quotes_may_hold_separators_and_other_columns_line_breaks(images: Path) -> None:
    content = 'file,label,note\n"img_00.png","a, b","two\nlines"\nMy pic 3.png,"say ""x""",\n'
    found = labels(labeled(images, content))
    assert (found["img_00.png"], found["My pic 3.png"]) == ("a, b", 'say "x"')


@pytest.mark.parametrize(
    ("folders", "note"),
    [
        (("cat",), "all labels are the same (cat): scores by them say nothing"),
        (("train", "val"), "the labels are train, val, which are parts of a data set, not classes: "),
        (("Test", "Train"), "the labels are Test, Train, which are parts of a data set, not classes: "),
    ],
)
def test_labels_that_say_nothing_are_doubted(tmp_path: Path, folders: tuple[str, ...], note: str) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir()
        Image.new("RGB", (6, 6)).save(tmp_path / folder / "a.png")
    settings = Prepare(source="folder", path=str(tmp_path), labels="folder", image_size=6)
    (found,) = open_source(settings).notes
    assert found.startswith(note)
    (tmp_path / "dog").mkdir()
    Image.new("RGB", (6, 6)).save(tmp_path / "dog/a.png")
    assert open_source(settings).notes == []
