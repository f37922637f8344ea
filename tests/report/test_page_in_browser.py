"""The page in a real browser: filter, sort, enlarge, on a desktop and on a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from conr.report.page import Report, write_page
from conr.report.page_names import rename_in_page

pytest.importorskip("selenium", reason="selenium is not installed (pip install -e '.[dev]')")

from browser import CHROMIUM, DRIVER, MISSING, Page, chromium
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="module")
def address(report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(report, path)
    return path.as_uri()


@pytest.fixture
def page(driver: webdriver.Chrome, address: str) -> Iterator[Page]:
    page = Page(driver, address)
    page.resize(1280)
    page.load()
    yield page
    assert driver.get_log("browser") == []


@pytest.mark.parametrize(
    ("text", "clusters"),
    [
        ("cat", ["1"]),  # a label
        ("2", ["2"]),  # a number, though files are called owl-2.png
        ("cluster 0", ["0"]),
        ("7", ["2"]),  # no cluster has this number, but one this label
        ("11", ["0"]),  # neither: then the files
        ("OWL-4", ["0"]),
        ("<script>", ["1"]),
        ("nowhere", []),
        ("  ", ["1", "0", "2", "3"]),
    ],
)
def test_filter_hides_the_other_clusters(page: Page, text: str, clusters: list[str]) -> None:
    page.type(text)
    assert page.clusters() == clusters
    assert page.find("#nothing").is_displayed() == (not clusters)
    assert page.find("#shown").text == (f"{len(clusters)} of 4 clusters" if text.strip() else "4 clusters")


def test_filter_points_at_the_file(page: Page) -> None:
    page.type("owl-4")
    found = page.driver.find_elements(By.CSS_SELECTOR, ".found")
    assert [thumb.get_attribute("title") for thumb in found] == ["owl-4.png"]


def test_sorting_changes_the_order_and_keeps_the_filter(page: Page) -> None:
    assert page.clusters() == ["1", "0", "2", "3"]
    page.sort("uncertainty")
    assert page.clusters() == ["2", "0", "1", "3"]
    page.sort("size, smallest first")
    assert page.clusters() == ["3", "2", "0", "1"]
    page.type("owl")
    page.sort("number")
    assert page.clusters() == ["0"]


def test_a_thumbnail_opens_large_and_escape_closes_it(page: Page) -> None:
    viewer, thumb = page.find("#viewer"), page.find('.thumb[title="owl-4.png"]')
    assert thumb.size["width"] >= 56
    thumb.click()
    assert viewer.is_displayed()
    assert page.find("#name").text == "owl-4.png"
    assert page.find("#details").text == "Cluster 0, next nearest cluster 0, uncertainty 0.25, label owl"
    assert page.find("#large").size["width"] >= 300
    assert page.find("#large").value_of_css_property("image-rendering") == "pixelated"
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not viewer.is_displayed()
    assert page.driver.switch_to.active_element == thumb


def test_the_keyboard_is_enough(page: Page) -> None:
    page.driver.execute_script("arguments[0].focus()", page.find('.thumb[title="owl-4.png"]'))
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert page.find("#name").text == "owl-5.png"
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert page.find("#name").text == "owl-3.png"
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)  # the close button has the focus
    assert not page.find("#viewer").is_displayed()


def test_arrows_skip_what_the_filter_hides(page: Page) -> None:
    page.type("seven")
    page.find('.thumb[title="seven-1.png"]').click()
    page.find("#next").click()
    assert page.find("#name").text == "edge-of-2.png"
    page.find("#next").click()
    assert page.find("#name").text == "seven-1.png"


def test_names_with_markup_are_shown_as_they_are(page: Page) -> None:
    page.find('.card[data-number="1"] .thumb').click()
    assert page.find("#name").text == '<script>alert("1")</script>'
    page.find("#close").click()
    page.find("figure button").click()
    assert page.find("#name").text == 'Sizes <script>alert("1")</script>'
    assert page.find("#large").size["width"] > 800


def test_a_name_is_shown_when_the_page_is_loaded_again(
    driver: webdriver.Chrome, report: Report, tmp_path: Path
) -> None:
    path, name = tmp_path / "report.html", "</script><b>'Cats' & \"dogs\" 🐈 חתול"
    write_page(report, path)
    page = Page(driver, path.as_uri())
    page.resize(1280)
    page.load()
    assert page.find("#cluster-1 .head").text.startswith("Cluster 1\n")
    assert rename_in_page(path, {1: name})
    page.load()
    assert page.find("#cluster-1 .head").text.startswith(f"{name}\ncluster 1\n")
    assert page.find("#cluster-0 .borderline").text == f"could also be {name}"
    assert page.find("#cluster-1 .borderline").text == "could also be cluster 2"
    page.type("DOGS")
    assert page.clusters() == ["1"]
    page.find("#cluster-1 .thumb").click()
    assert page.find("#details").text == f"{name}, next nearest cluster 0, uncertainty 0.25, label cat"
    page.find("#close").click()
    page.find("figure button").click()
    assert page.find("#details").text == ""
    assert driver.get_log("browser") == []


def test_a_link_reaches_a_cluster_that_the_filter_hides(page: Page) -> None:
    page.type("owl")
    page.find('.card[data-number="0"] a').click()
    assert page.find("#filter").get_attribute("value") == ""
    top = page.driver.execute_script("return document.getElementById('cluster-1').getBoundingClientRect().top")
    assert 0 <= top < 900


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_screen(page: Page, width: int, dark: bool) -> None:
    page.resize(width, dark)
    page.load()
    measure = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth, innerWidth]"
    assert page.driver.execute_script(measure) == [width] * 3 or width >= 600
    scroll_width, client_width, _ = page.driver.execute_script(measure)
    assert scroll_width <= client_width
    background = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(18, 22, 28)" if dark else "rgb(246, 247, 249)")
    page.driver.execute_script("arguments[0].click()", page.find('.thumb[title$="cat.jpeg"]'))
    viewer = page.find("#viewer")
    assert viewer.rect["x"] >= 0
    assert viewer.rect["x"] + viewer.rect["width"] <= width
    assert page.driver.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", viewer)
