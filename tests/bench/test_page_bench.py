"""The page of bench/page.py at toy size, where there is no browser."""

from pathlib import Path

import page
import pytest

pytestmark = pytest.mark.bench


def test_every_part_has_a_row_and_the_page_holds_all_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page.shutil, "which", lambda _: None)
    path = tmp_path / "report.html"
    page.main(["--images", "60", "--clusters", "3", "--keep", str(path)])
    printed = capsys.readouterr().out
    rows = [row.strip("| ").split(" | ") for row in printed.splitlines() if row.startswith("| ")]
    assert [row[0] for row in rows[1:]] == [
        "positions of all images",
        "nearest images of all images",
        "map as text, with its sprites",
        "page",
    ]
    assert f"{path.stat().st_size / 1e6:.1f} MB" in printed
    assert "opening" not in printed
    html = path.read_text(encoding="utf-8")
    assert html.count("<article") == 3
    assert "IMG_00000059.jpg" in html
