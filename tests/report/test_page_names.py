"""Names of clusters on a page that is there already: changed in their block, and nowhere else."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from map_sample import make_mapped_report

from conr.report.page import Report, write_page
from conr.report.page_names import END, START, names_block, rename_in_page

HOSTILE_NAMES = [
    '</script><script>alert("1")</script>',
    "<!--<script>",
    "]]>",
    "\"; alert(1); '",
    "\\u003c & &lt; \\",
    "🦉 owls",
    "ينابيع חתולים",
    "\u2028",
]


class Scripts(HTMLParser):
    """What is in each script of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[tuple[dict[str, str | None], str]] = []
        self.inside: dict[str, str | None] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = dict(attrs) if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self.inside is not None:
            self.texts.append((self.inside, data))

    def handle_endtag(self, tag: str) -> None:
        self.inside = None


def names_on(html: str) -> dict[int, str]:
    found = [text for attributes, text in Scripts(html).texts if attributes.get("id") == "cluster-names"]
    assert len(found) == 1
    return {int(number): name for number, name in json.loads(found[0]).items()}


@given(
    st.dictionaries(st.integers(0, 200), st.text("</script>!-\"'&\\u03cé🦉ח\ud800") | st.sampled_from(HOSTILE_NAMES))
)
def test_any_name_is_read_as_it_was_and_is_no_markup(names: dict[int, str]) -> None:
    block = names_block(names)
    assert names_on(block) == names
    assert block.isascii()
    assert not re.search("[<>&]", block.removeprefix(START.decode()).removesuffix(END.decode()))


@settings(derandomize=True, deadline=None, max_examples=6)
@given(st.lists(st.dictionaries(st.integers(0, 12), st.sampled_from(HOSTILE_NAMES)), min_size=2, max_size=4))
def test_a_renamed_page_is_the_one_that_is_written_with_these_names(
    tmp_path_factory: pytest.TempPathFactory, steps: list[dict[int, str]]
) -> None:
    report, folder = Report("Cats", [("images", "9")], {}, [START.decode()], [], []), tmp_path_factory.mktemp("page")
    path, expected = folder / "report.html", folder / "expected.html"
    write_page(replace(report, names=steps[0]), path)
    for names in steps[1:]:
        assert rename_in_page(path, names)
    write_page(replace(report, names=steps[-1]), expected)
    assert path.read_bytes() == expected.read_bytes()
    assert sorted(folder.iterdir()) == [expected, path]


def test_without_a_script_every_cluster_has_its_number(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(make_mapped_report(), path)
    assert rename_in_page(path, {1: "Owls"})
    html = path.read_text(encoding="utf-8")
    assert names_on(html) == {1: "Owls"}
    assert html.count("Owls") == 1
    assert "Leaves" not in html
    assert re.findall("<h3.*?>(Cluster .*?)</h3>", html) == ["Cluster 0", "Cluster 1", "Cluster 2"]


@pytest.mark.parametrize("content", [b"", b"<html>\r\n\xff", START])
def test_a_page_without_names_stays_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(content)
    assert not rename_in_page(path, {1: "Owls"})
    assert path.read_bytes() == content
