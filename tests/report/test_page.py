"""The page as text: escaped, self-contained, with the right numbers."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conr.report.page import ClusterCard, Report, Sample, difference, write_page


class Outline(HTMLParser):
    """Tags with their attributes, and the text of each score's line."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def find(self, tag: str, of_class: str = "") -> list[dict[str, str | None]]:
        return [a for name, a in self.tags if name == tag and of_class in (a.get("class") or "")]


@pytest.fixture(scope="module")
def html(report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(report, path)
    return path.read_text(encoding="utf-8")


def score_cells(html: str, name: str) -> list[str]:
    line = re.search(rf'<tr><th scope="row">{name}<small>.*?</tr>', html)
    assert line is not None
    return [re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?</td>", line[0])]


def decode(uri: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    image.load()
    return image


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ("0.712", "0.917", "+0.205"),
        ("0.981", "0.977", "−0.004"),
        ("0.500", "0.500", "±0.000"),
        ("-0.10", "0.05", "+0.15"),
        ("12", "7", "−5"),
        ("–", "0.9", None),
        ("", "0.9", None),
        ("nan", "0.9", None),
        ("0.9 ± 0.1", "0.9", None),
        ("0.231", "0.224 ± 0.002", "−0.007"),
    ],
)
def test_difference(before: str, after: str, change: str | None) -> None:
    assert difference(before, after) == change


def test_scores_tell_the_change_and_whether_it_is_good(html: str) -> None:
    assert score_cells(html, "ACC") == ["0.712", "0.917", "+0.205 better"]
    assert score_cells(html, "silhouette") == ["0.300", "0.250", "−0.050 worse"]
    assert score_cells(html, "balance") == ["0.981", "0.977", "−0.004"]  # less balance may be right
    assert "if each cluster stands for one class" in html


def test_one_network_has_no_change_and_a_missing_score_is_a_dash(report: Report, tmp_path: Path) -> None:
    write_page(replace(report, score_rows=report.score_rows[:1]), tmp_path / "one.html")
    assert score_cells((tmp_path / "one.html").read_text(), "ACC") == ["0.712"]
    rows = [{"features": "a", "ACC": "0.5"}, {"features": "b", "NMI": "0.4"}]
    write_page(replace(report, score_rows=rows), tmp_path / "two.html")
    assert score_cells((tmp_path / "two.html").read_text(), "ACC") == ["0.5", "–", "–"]


def test_published_numbers_stand_below_the_scores_with_their_source(report: Report, tmp_path: Path) -> None:
    rows = [
        {"method": "this run", "NMI": "70.1", "ACC": "80.2", "source": ""},
        {"method": "ConNR", "NMI": "", "ACC": "93.2", "source": "<b>the paper"},
    ]
    write_page(replace(report, published=rows), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    section = html[html.index("<h2>Published numbers</h2>") : html.index("<h2>Figures</h2>")]
    lines = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", line) for line in re.findall("<tr>.*?</tr>", section)]
    assert lines == [
        ["method", "NMI", "ACC", "source"],
        ["this run", "70.1", "80.2", "–"],
        ["ConNR", "–", "93.2", "&lt;b&gt;the paper"],
    ]
    assert html.index("<h2>Scores</h2>") < html.index("<h2>Published numbers</h2>")


def test_without_published_numbers_there_is_no_section(html: str) -> None:
    assert "Published numbers" not in html


def test_markup_in_names_stays_text(html: str) -> None:
    assert "<script>alert" not in html
    outline = Outline(html)
    assert len(outline.find("script")) == 1
    assert '<script>alert("1")</script>' in [thumb["title"] for thumb in outline.find("button", "thumb")]
    assert html.count("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;") >= 5  # title, note, caption, name


def test_a_name_that_is_no_text_does_not_stop_the_page(report: Report, tmp_path: Path) -> None:
    write_page(replace(report, notes=["a file called \udcff.png"]), tmp_path / "report.html")
    assert "a file called ?.png" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(html: str) -> None:
    assert not re.search(
        r"(?:https?:)?//[a-z0-9]", re.sub(r"data:image/png;base64,[^\"]*|<style>.*?</script>", "", html)
    )
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest", html)
    outline = Outline(html)
    assert not [a for _, a in outline.tags if not (a.get("src") or "data:").startswith("data:")]
    assert [a["href"] for _, a in outline.tags if "href" in a and not (a["href"] or "").startswith("#")] == ["data:,"]
    policy = next(a["content"] for a in outline.find("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert (policy or "").startswith("default-src 'none'")


def test_cards_are_sorted_by_size_and_links_lead_to_cards(html: str) -> None:
    outline = Outline(html)
    assert [card["data-number"] for card in outline.find("article")] == ["1", "0", "2", "3"]
    ids = {a["id"] for _, a in outline.tags if "id" in a}
    assert {(link["href"] or "")[1:] for link in outline.find("a")} <= ids
    assert "No image is nearest to this cluster." in html


def test_an_image_with_another_label_than_its_cluster_is_marked(html: str) -> None:
    marked = [thumb["title"] for thumb in Outline(html).find("button", "thumb other")]
    assert len(marked) == 1
    assert (marked[0] or "").endswith("cat.jpeg")


def test_thumbnails_keep_the_stored_pixels_up_to_128(report: Report, html: str) -> None:
    outline = Outline(html)
    sources = [
        following["src"] or ""
        for (tag, a), (_, following) in zip(outline.tags, outline.tags[1:], strict=False)
        if tag == "button" and "thumb" in (a.get("class") or "")
    ]
    images = [decode(source) for source in sources]
    assert {image.size for image in images} == {(8, 8), (128, 128)}
    np.testing.assert_array_equal(np.asarray(images[0]), report.clusters[1].typical[0].pixels)


def many_clusters(clusters: int, samples: int, edge: int) -> list[ClusterCard]:
    noise = np.random.default_rng(0).integers(0, 256, (clusters, samples, edge, edge, 3), dtype=np.uint8)
    return [
        ClusterCard(
            k, 9, 0.1, 0.5, None, [Sample(f"{k}-{i}.png", noise[k, i], 0.5, None, 0) for i in range(samples)], []
        )
        for k in range(clusters)
    ]


def test_ten_clusters_of_24_small_images_stay_under_2_mb(report: Report, tmp_path: Path) -> None:
    write_page(replace(report, clusters=many_clusters(10, 24, 32)), tmp_path / "report.html")  # noise: the worst case
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_thumbnails_shrink_when_there_are_very_many(report: Report, tmp_path: Path) -> None:
    write_page(replace(report, clusters=many_clusters(75, 20, 80)), tmp_path / "report.html")
    images = Outline((tmp_path / "report.html").read_text()).find("img")
    sizes = [decode(image["src"] or "").size for image in images if image.get("loading") == "lazy"]
    assert sizes == [(64, 64)] * 1500


def test_an_empty_report_has_no_empty_sections(tmp_path: Path) -> None:
    write_page(Report("Nothing", [], [], [], [], []), tmp_path / "report.html")
    assert not Outline((tmp_path / "report.html").read_text()).find("section")
