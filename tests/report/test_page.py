"""The page as text: escaped, self-contained, with the right numbers."""

import base64
import io
import math
import re
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_sample import HOSTILE, make_card, make_sample, single

from conr.evaluation.scores import SCORES, MeanStd
from conr.report.page import Choice, ClusterCard, Group, Report, Sample, ScoreLine, Skipped, write_page
from conr.report.published import Published


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
    kind, _, content = uri.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{(image.format or '').lower()}"
    image.load()
    return image


def shown(value: MeanStd | None, other: MeanStd | None, folder: Path) -> list[str]:
    """The line of the accuracy of two networks."""
    rows = {name: {} if score is None else {"acc": score} for name, score in (("a", value), ("b", other))}
    write_page(Report("Two", [], rows, [], [], []), folder / "two.html")
    return score_cells((folder / "two.html").read_text(encoding="utf-8"), "ACC")


@pytest.mark.parametrize(
    ("before", "after", "cells"),
    [
        (0.7123, 0.9174, ["0.712", "0.917", "+0.205 better"]),
        (0.9806, 0.9774, ["0.981", "0.977", "−0.004 worse"]),
        (0.5, 0.5, ["0.500", "0.500", "±0.000"]),
        (0.49951, 0.50049, ["0.500", "0.500", "±0.000"]),  # they differ, but not as they are shown
        (0.49949, 0.49951, ["0.499", "0.500", "+0.001 better"]),  # and the other way round
        (-0.1, 0.05, ["-0.100", "0.050", "+0.150 better"]),
        (None, 0.9, ["–", "0.900", "–"]),
        (0.9, None, ["0.900", "–", "–"]),
        (math.nan, 0.9, ["nan", "0.900", "–"]),
    ],
)
def test_the_change_is_that_of_the_numbers_shown(
    before: float | None, after: float | None, cells: list[str], tmp_path: Path
) -> None:
    values = [None if value is None else MeanStd(value, None, 1) for value in (before, after)]
    assert shown(*values, tmp_path) == cells


@settings(derandomize=True, deadline=None, max_examples=200)
@given(before=st.floats(-1, 1), after=st.floats(-1, 1), std=st.none() | st.floats(0, 1))
def test_a_reader_who_subtracts_finds_the_change(before: float, after: float, std: float | None) -> None:
    line = ScoreLine(SCORES["acc"], [MeanStd(before, None, 1), MeanStd(after, std, 5)])
    assert line.change is not None
    expected = Decimal(f"{after:.3f}") - Decimal(f"{before:.3f}")
    assert Decimal(f"{line.change:.3f}") == expected
    assert line.verdict == ("better" if expected > 0 else "worse" if expected < 0 else "")


def test_of_several_seeds_the_mean_counts_for_the_change(tmp_path: Path) -> None:
    cells = shown(MeanStd(0.2311, None, 1), MeanStd(0.2239, 0.0021, 3), tmp_path)
    assert cells == ["0.231", "0.224 ± 0.002", "−0.007 worse"]


def test_scores_say_how_they_changed_and_whether_that_is_good(html: str) -> None:
    assert score_cells(html, "ACC") == ["0.712", "0.917", "+0.205 better"]
    assert score_cells(html, "silhouette") == ["0.300", "0.250", "−0.050 worse"]
    assert score_cells(html, "size entropy") == ["0.981", "0.977", "−0.004"]  # less may be right
    assert all(SCORES[key].meaning in html for key in ("acc", "silhouette", "size_entropy"))
    assert SCORES["nmi"].meaning not in html


def test_scores_stand_in_the_order_of_the_table_and_only_those_for_people(report: Report, tmp_path: Path) -> None:
    scores = {"a": single(inertia=3.0, feature_std=0.9, silhouette=0.1, ari=0.2, nmi=0.3, acc=0.4)}
    write_page(replace(report, scores=scores), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    titles = re.findall(r'<tr><th scope="row">(.*?)<small>', html)
    assert titles == ["ACC", "NMI", "ARI", "silhouette"]


def test_one_network_has_no_change_and_a_missing_score_is_a_dash(report: Report, tmp_path: Path) -> None:
    write_page(replace(report, scores={"a": single(acc=0.7123)}), tmp_path / "one.html")
    html = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert score_cells(html, "ACC") == ["0.712"]
    assert '<th scope="col">change</th>' not in html
    write_page(replace(report, scores={"a": single(acc=0.5), "b": single(nmi=0.4)}), tmp_path / "two.html")
    html = (tmp_path / "two.html").read_text(encoding="utf-8")
    assert score_cells(html, "ACC") == ["0.500", "–", "–"]
    assert score_cells(html, "NMI") == ["–", "0.400", "–"]


def published_lines(html: str) -> list[list[str]]:
    section = html[html.index("<h2>Published numbers</h2>") : html.index("<h2>Figures</h2>")]
    lines = re.findall("<tr>.*?</tr>", section, re.DOTALL)
    return [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", line) for line in lines]


PUBLISHED = [
    Published(
        method="ConNR", dataset="cifar10", imbalance=1, clusters=10, acc=93.2, source="<b>the paper", place="Table 1"
    ),
    Published(
        method=HOSTILE,
        dataset="cifar10",
        imbalance=1,
        clusters=10,
        architecture="ResNet-34",
        nmi=86.7,
        acc=92.6,
        ari=86.1,
        acc_std=1.0,
        seeds=5,
        source="the paper",
        place="Table 9",
    ),
]
HEAD = ["method", "NMI", "ACC", "ARI", "architecture", "source"]
PUBLISHED_LINES = [
    ["ConNR", "–", "93.2", "–", "–", "&lt;b&gt;the paper, Table 1"],
    [
        "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;",
        "86.7",
        "92.6 ± 1.0 (5 seeds)",
        "86.1",
        "ResNet-34",
        "the paper, Table 9",
    ],
]


@pytest.mark.parametrize(
    ("own", "cells"),
    [
        (single(acc=0.8024, nmi=0.7011, ari=0.65), ["70.1", "80.2", "65.0"]),
        (
            {key: MeanStd(0.8024, 0.0096, 5) for key in ("acc", "nmi", "ari")},
            ["80.2 ± 1.0 (5 seeds)"] * 3,
        ),
    ],
)
def test_published_numbers_stand_below_the_scores_with_their_source(
    own: dict[str, MeanStd], cells: list[str], report: Report, tmp_path: Path
) -> None:
    scores = {"pretrained": single(acc=0.1, nmi=0.1, ari=0.1), "fine-tuned": own}
    write_page(replace(report, scores=scores, published=PUBLISHED), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert published_lines(html) == [HEAD, ["this run (ConNR)", *cells, "–", "–"], *PUBLISHED_LINES]
    assert html.index("<h2>Scores</h2>") < html.index("<h2>Published numbers</h2>")


def test_without_labels_no_published_numbers_stand_beside_a_run(report: Report, tmp_path: Path) -> None:
    scores = {"fine-tuned": single(silhouette=0.3)}
    write_page(replace(report, scores=scores, published=PUBLISHED), tmp_path / "report.html")
    assert "Published numbers" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_published_numbers_there_is_no_section(html: str) -> None:
    assert "Published numbers" not in html


def test_markup_in_names_stays_text(html: str) -> None:
    assert "<script>alert" not in html
    outline = Outline(html)
    assert [script.get("id") for script in outline.find("script")] == ["cluster-names", None]
    assert '<script>alert("1")</script>' in [thumb["title"] for thumb in outline.find("button", "thumb")]
    assert html.count("&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;") >= 5  # title, note, caption, name


HOSTILE_NAMES = [
    '" onmouseover="alert(1)',
    "'><b>",
    "{{ report.title }}",
    "{% raw %}",
    "&amp;",
    "</script><script>",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_name_is_more_than_text_wherever_it_stands(name: str, report: Report, tmp_path: Path) -> None:
    sample = make_sample(name, 0, label=name)
    card = make_card(0, 9, 0.5, name, 0.5, [sample])
    (tmp_path / "plain").mkdir()
    outlines = {}
    for folder, text in (("plain", "plain"), ("", name)):
        changed = replace(
            report,
            title=text,
            facts=[(text, text)],
            scores={text: single(acc=0.5)},
            notes=[text],
            figures=[(text, report.figures[0][1])],
            clusters=[replace(card, label=text, typical=[replace(sample, file=text, label=text)])],
        )
        write_page(changed, tmp_path / folder / "report.html")
        html = (tmp_path / folder / "report.html").read_text(encoding="utf-8")
        outlines[text] = [(tag, sorted(attributes)) for tag, attributes in Outline(html).tags]
    assert outlines[name] == outlines["plain"]  # the same tags with the same attributes
    thumb = Outline(html).find("button", "thumb")[0]
    assert thumb["title"] == name
    assert (thumb["data-next"], thumb["data-uncertainty"], thumb["data-label"]) == ("0", "0.25", name)


def test_a_name_that_is_no_text_does_not_stop_the_page(report: Report, tmp_path: Path) -> None:
    write_page(replace(report, notes=["a file called \udcff.png"]), tmp_path / "report.html")
    assert "a file called ?.png" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(html: str) -> None:
    assert not re.search(
        r"(?:https?:)?//[a-z0-9]", re.sub(r"data:image/[a-z]+;base64,[^\"]*|<style>.*?</script>", "", html)
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


def test_a_card_says_size_share_label_and_uncertainty(html: str) -> None:
    card = html[html.index('id="cluster-0"') : html.index('id="cluster-2"')]
    text = " ".join(re.sub("<.*?>", " ", card).split())
    assert "Cluster 0 owl (90%) 30 images, 30.0 % uncertainty 0.60" in text
    assert 'style="width:60%"' in card
    assert 'data-uncertainty="0.600000"' in card
    assert 'data-label="owl"' in card
    assert 'could also be <a dir="auto" href="#cluster-1">cluster 1</a>' in card


def test_a_cluster_of_one_image_has_no_plural(report: Report, tmp_path: Path) -> None:
    write_page(replace(report, clusters=[make_card(0, 1, 0.5, None, 0.0, [])]), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ">1 image," in html
    assert "most frequent one" not in html  # there are no labels


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
            k, 9, 0.1, 0.5, None, 0.0, [Sample(f"{k}-{i}.png", noise[k, i], 0.5, None, 0) for i in range(samples)], []
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
    write_page(Report("Nothing", [], {}, [], [], []), tmp_path / "report.html")
    assert not Outline((tmp_path / "report.html").read_text()).find("section")


def written(report: Report, folder: Path) -> str:
    write_page(report, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_row_of_scores_that_is_of_the_clusters_shown_is_marked(report: Report, tmp_path: Path) -> None:
    scores = {"k-means": single(acc=0.5), "graph": single(acc=0.6)}
    html = written(replace(report, scores=scores, result="graph"), tmp_path)
    assert '<th scope="col">graph<small>shown on this page</small></th>' in html
    assert html.count("shown on this page") == 1


def test_the_number_of_clusters_is_explained_with_its_curve(report: Report, tmp_path: Path) -> None:
    choice = Choice("12 clusters: the gap is largest there.", "Criteria against K", report.figures[0][1])
    html = written(replace(report, choice=choice), tmp_path)
    section = html[html.index('<section id="choice">') :]
    assert "12 clusters: the gap is largest there." in section
    assert section.index("Criteria against K") < section.index("</section>")
    assert 'id="choice"' not in written(report, tmp_path)
    assert "<figure>" not in written(Report("K", [], {}, [], [], [], choice=Choice("12.")), tmp_path)


def test_images_to_check_stand_with_the_names_of_all_their_files(report: Report, tmp_path: Path) -> None:
    sample = make_sample("a.png", 1)
    groups = [Group("Equal images", [(sample, ["a.png", "b.png", "c.png", "d.png", HOSTILE, "f.png"])], more=1234)]
    html = written(replace(report, groups=groups, skipped=[Skipped("no image", 1200, HOSTILE)]), tmp_path)
    section = html[html.index('<section id="checks">') :]
    assert "<b>6 files</b>" in section
    assert "<li>d.png</li><li>and 2 more</li>" in section
    assert "And 1,234 more." in section
    assert "<td>no image</td><td>1,200</td><td>&lt;script&gt;" in section


def test_parts_of_the_page_are_linked_at_its_top(report: Report, html: str, tmp_path: Path) -> None:
    navigation = html[html.index("<nav") : html.index("</nav>")]
    assert re.findall('href="#(.*?)"', navigation) == ["clusters", "scores", "figures"]
    ids = {a["id"] for _, a in Outline(html).tags if "id" in a}
    assert {"clusters", "scores", "figures"} <= ids
    assert "<nav" not in written(Report("Nothing", [], {}, [], [], []), tmp_path)
