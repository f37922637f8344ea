"""Images in WebDataset tar files: found with their labels, read in place, and named when something is wrong."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conr.data.items import Source
from conr.data.opening import UnreadableImageError
from conr.data.pack import pack
from conr.data.sources import open_source
from conr.data.store import open_store
from conr.errors import UserError
from conr.parameters import Prepare

SIZE = 6


def pixels(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def settings(folder: Path, **changes: object) -> Prepare:
    values = {"source": "webdataset", "path": str(folder), "labels": "none", "image_size": SIZE, **changes}
    return Prepare.model_validate(values)


def opened(folder: Path, **changes: object) -> Source:
    return open_source(settings(folder, **changes))


def test_samples_come_in_the_order_of_the_tar_files_and_of_their_members(tmp_path: Path) -> None:
    write_tar(tmp_path / "b/1.tar", {"z.png": png(2), "cat/a.b.png": b"", "cat/a.png": png(3)})
    write_tar(tmp_path / "a.tar", {"x/10.png": png(0), "x/10.cls": b"1", "x/9.jpg": png(1)})
    (tmp_path / "README.md").touch()
    source = opened(tmp_path)
    assert [item.file for item in source.items] == [
        "a.tar/x/10.png",
        "a.tar/x/9.jpg",
        "b/1.tar/z.png",
        "b/1.tar/cat/a.png",
    ]
    assert {item.label for item in source.items} == {None}
    assert source.skipped == [("README.md", "not a tar file by the suffix of its name")]
    for number, item in enumerate(source.items):
        np.testing.assert_array_equal(item.read(), pixels(number))


def test_packed_pixels_are_those_of_the_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", {f"{number}.png": png(number) for number in range(5)})
    manifest = pack(opened(tmp_path / "in"), settings(tmp_path / "in"), tmp_path / "store")
    assert (manifest.count, manifest.source, manifest.dataset) == (5, str(tmp_path / "in"), "webdataset")
    np.testing.assert_array_equal(open_store(tmp_path / "store").images, [pixels(number) for number in range(5)])


def test_an_image_that_is_not_square_is_fitted_as_a_file_would_be(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 8, 3), 200, np.uint8)).save(buffer, "PNG")
    write_tar(tmp_path / "a.tar", {"a.png": buffer.getvalue()})
    padded, cropped = (opened(tmp_path, fit=fit).items[0].read() for fit in ("pad", "crop"))
    assert not padded[0].any()
    assert (cropped == 200).all()


def test_the_label_in_json_counts_before_cls(tmp_path: Path) -> None:
    facts = [{"label": "cat"}, {"label": ""}, {"other": 1}, {"label": 0}]
    members = {}
    for number, known in enumerate(facts):
        members |= {f"{number}.png": png(number), f"{number}.json": json.dumps(known).encode(), f"{number}.cls": b"7\n"}
    write_tar(tmp_path / "a.tar", members | {"4.png": png(4), "5.cls": b"3", "5.PNG": png(5)})
    labels = [item.label for item in opened(tmp_path, labels="dataset").items]
    assert labels == ["cat", "7", "7", "0", None, "3"]


def test_a_folder_of_tar_files_can_be_split(tmp_path: Path) -> None:
    write_tar(tmp_path / "train/a.tar", {f"{number}.png": png(number) for number in range(3)})
    write_tar(tmp_path / "test/a.tar", {"9.png": png(9)})
    source = opened(tmp_path, protocol="held-out")
    assert (source.train_count, source.score_start) == (3, 3)
    assert [item.file for item in source.items][-1] == "test/a.tar/9.png"


def test_samples_without_an_image_are_left_out_and_broken_ones_named(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", {"a.txt": b"x", "b.png": b"not a picture", "c.png": b"", "._d.png": b"", "d.png": png(0)}
    )
    source = opened(tmp_path)
    assert source.skipped == [("a.tar/a", "a sample without an image")]
    assert [item.file for item in source.items] == ["a.tar/b.png", "a.tar/c.png", "a.tar/d.png"]
    for item, reason in zip(source.items, ("not an image file", "empty file"), strict=False):
        with pytest.raises(UnreadableImageError, match=reason):
            item.read()


def test_patterns_leave_out_tar_files(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, {"a.png": png(0)})
    source = opened(tmp_path, exclude=["b.*"])
    assert [item.file for item in source.items] == ["a.tar/a.png"]
    assert source.skipped == [("b.tar", "left out by prepare.exclude: b.*")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar.gz", b"", r"a\.tar\.gz is compressed.*uncompress it"),
        ("a.tar", b"\1" * 2000, r"a\.tar is no tar file, or damaged"),
        ("a.tar", None, r"a\.tar is no tar file, or damaged"),
        ("a.txt", b"", r"prepare\.path: .* holds no tar file with an image"),
    ],
)
def test_what_is_no_whole_tar_file_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    write_tar(tmp_path / name, {"a.png": png(0), "b.png": bytes(3000)})
    if content is None:
        content = (tmp_path / name).read_bytes()[:2000]  # of the second image
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        opened(tmp_path)


def test_damaged_or_missing_labels_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.png": png(0), "a.json": b"{"})
    with pytest.raises(UserError, match=r"a\.tar: a\.json is no JSON"):
        opened(tmp_path, labels="dataset")
    assert len(opened(tmp_path).items) == 1, "without labels nobody reads it"
    write_tar(tmp_path / "a.tar", {"a.png": png(0)})
    with pytest.raises(UserError, match=r"prepare\.labels: no image in .* has a label"):
        opened(tmp_path, labels="dataset")
    with pytest.raises(UserError, match=r"prepare\.labels: parent cannot be used with prepare\.source: webdataset"):
        opened(tmp_path, labels="parent")
