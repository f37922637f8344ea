"""The map in a real browser: pointing, clicking, keys, touch, filter, dark mode, a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from map_sample import EACH, EDGE, HOSTILE, INKS, make_mapped_report

from conr.report.page import write_page
from conr.report.page_names import rename_in_page

pytest.importorskip("selenium", reason="selenium is not installed (pip install -e '.[dev]')")

from browser import CHROMIUM, DRIVER, MISSING, Page, chromium
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)

IMAGE = EACH + 14  # in the middle of the map
NAME = f"folder {IMAGE % 2}/image-{IMAGE:03}.png"
LOADED = (
    "return [...document.querySelectorAll(arguments[0])].every((image) => image.complete && image.naturalWidth > 0)"
)


class MapPage(Page):
    """The report with its map."""

    def load(self) -> None:
        super().load()
        self.wait("return document.getElementById('stage').dataset.drawn")
        self.run("document.getElementById('images-map').scrollIntoView()")

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)))"
        )

    def place(self, image: int) -> tuple[float, float]:
        """Where an image is drawn, from the map's upper left corner."""
        x, y = self.run("return placeOf(arguments[0])", image)
        return x, y

    def move(self, image: int) -> ActionChains:
        """Bring the pointer to an image."""
        x, y = self.place(image)
        map_ = self.find("#map")
        width, height = map_.size["width"], map_.size["height"]
        return ActionChains(self.driver).move_to_element_with_offset(map_, round(x - width / 2), round(y - height / 2))

    def click(self, image: int) -> None:
        self.move(image).click().perform()

    def ink(self, image: int) -> list[int]:
        """The color of the map where an image is."""
        return self.color(*self.place(image))

    def color(self, x: float, y: float) -> list[int]:
        """The color of the map at a place, once all is drawn."""
        self.settle()
        return self.pixel("#map", *self.run("return arguments[0].map((at) => Math.round(at * view.ratio))", [x, y]))

    def pixel(self, selector: str, x: int, y: int) -> list[int]:
        """The color of a pixel of an image or a canvas."""
        script = """const [selector, x, y] = arguments, pen = new OffscreenCanvas(1, 1).getContext("2d");
        pen.drawImage(document.querySelector(selector), x, y, 1, 1, 0, 0, 1, 1);
        return [...pen.getImageData(0, 0, 1, 1).data];"""
        found: list[int] = self.run(script, selector, x, y)
        return found[:3]

    def selected(self) -> str:
        return self.find("#panel-name").text

    def neighbors(self, place: str) -> list[str]:
        buttons = self.all(f"{place} .neighbor")
        return [(button.get_attribute("aria-label") or "").partition(",")[0] for button in buttons]

    def legend(self, name: str) -> None:
        next(button for button in self.all("#legend button") if button.text.startswith(name)).click()


def name(image: int) -> str:
    return f"folder {image % 2}/image-{image:03}.png"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(make_mapped_report(), path)
    return path.as_uri()


@pytest.fixture
def page(driver: webdriver.Chrome, address: str) -> Iterator[MapPage]:
    page = MapPage(driver, address)
    page.resize(1280)
    page.load()
    yield page
    fetched = (
        "return performance.getEntriesByType('resource').map(({name}) => name).filter((name) => !/^data:/.test(name))"
    )
    assert page.run(fetched) == []
    assert driver.get_log("browser") == []


# Looking


def test_points_have_the_colors_of_their_clusters(page: MapPage) -> None:
    colors = [page.ink(cluster * EACH + 14) for cluster in range(3)]
    palette = page.run("return data.clusters.map((cluster) => colors[cluster.number])")
    ground = page.run("return theme.groundRgb")
    for color, pure in zip(colors, palette, strict=True):
        assert max(abs(a - b) for a, b in zip(color, pure, strict=True)) < 60
        assert sum(abs(a - b) for a, b in zip(color, ground, strict=True)) > 100


def test_pointing_at_an_image_shows_it(page: MapPage) -> None:
    assert not page.find("#tip").is_displayed()
    page.move(IMAGE).perform()
    assert page.find("#tip").is_displayed()
    assert page.find("#tip-name").text == NAME.rpartition("/")[2]
    assert page.find("#tip-cluster").text == "Leaves <b>, label cat"
    page.wait(LOADED, "#tip-image")
    assert page.pixel("#tip-image", EDGE // 2, EDGE // 2) == list(INKS[1])
    ActionChains(page.driver).move_to_element(page.find("h1")).perform()
    assert not page.find("#tip").is_displayed()


def test_a_click_shows_an_image_with_its_nearest_images_and_a_click_on_one_moves_on(page: MapPage) -> None:
    page.click(IMAGE)
    assert page.selected() == NAME
    assert page.find("#panel-details").text == "Leaves <b>, next nearest cluster 2, uncertainty 0.56, label cat"
    assert page.neighbors("#panel-near") == [name(IMAGE + step) for step in range(1, 9)]
    page.wait(LOADED, "#panel img")
    assert page.find("#map-said").get_attribute("textContent").startswith(NAME)
    page.all("#panel-near .neighbor")[2].click()
    assert page.selected() == name(IMAGE + 3)
    assert page.neighbors("#panel-near")[0] == name(IMAGE + 4)


def test_a_click_beside_all_images_deselects(page: MapPage) -> None:
    page.click(IMAGE)
    ActionChains(page.driver).move_to_element_with_offset(page.find("#map"), 0, -250).click().perform()
    assert not page.find("#panel-body").is_displayed()
    assert page.find("#panel-hint").is_displayed()


def test_the_viewer_shows_an_image_of_the_map_and_walks_along_its_neighbors(page: MapPage) -> None:
    page.click(IMAGE)
    page.find("#panel-open").click()
    page.wait("return viewer.open")
    assert page.find("#name").text == NAME
    assert not page.find("#previous").is_enabled()
    page.wait(LOADED, "#near img")
    page.all("#near .neighbor")[0].click()
    page.wait("return $('name').textContent === arguments[0]", name(IMAGE + 1))
    page.all("#near .neighbor")[1].click()
    page.wait("return $('name').textContent === arguments[0]", name(IMAGE + 3))
    page.find("#previous").click()
    page.wait("return $('name').textContent === arguments[0]", name(IMAGE + 1))
    assert page.selected() == name(IMAGE + 1)
    page.find("#next").click()
    page.wait("return $('name').textContent === arguments[0]", name(IMAGE + 3))
    assert not page.find("#next").is_enabled()
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not page.find("#viewer").is_displayed()
    assert page.driver.switch_to.active_element == page.find("#panel-open")


def test_a_thumbnail_of_a_card_has_neighbors_too(page: MapPage) -> None:
    page.find(f'.thumb[data-point="{EACH + 1}"]').click()
    assert page.find("#details").text.startswith("Leaves <b>, next nearest cluster 0")
    assert page.neighbors("#near") == [name(EACH + step) for step in range(2, 10)]
    page.find("#next").click()  # the next thumbnail, as without a map
    assert page.find("#name").text == name(EACH + 2)
    page.all("#near .neighbor")[0].click()
    page.wait("return $('name').textContent === arguments[0]", name(EACH + 3))
    page.find("#previous").click()
    page.wait("return $('name').textContent === arguments[0]", name(EACH + 2))


def test_names_with_markup_are_shown_as_they_are(page: MapPage) -> None:
    page.click(0)
    assert page.selected() == HOSTILE
    assert page.find("#panel-cluster").text == "All of cluster 0"
    page.find("#panel-open").click()
    page.wait("return viewer.open")
    assert page.find("#name").text == HOSTILE


# Keys


def test_the_keyboard_is_enough(page: MapPage) -> None:
    page.run("document.getElementById('map').focus()")
    key = page.driver.switch_to.active_element.send_keys
    key(Keys.ARROW_RIGHT)  # the first key selects what is nearest to the middle
    start = page.run("return look.selected")
    assert start // EACH == 1
    key(Keys.ARROW_RIGHT)
    assert page.run("return look.selected") == start + 1
    key(Keys.ARROW_DOWN)
    assert page.run("return look.selected") == start + 7
    key(Keys.ARROW_LEFT, Keys.ARROW_UP)
    assert page.run("return look.selected") == start
    assert page.find("#map-said").get_attribute("textContent").startswith(name(start))
    key(Keys.ENTER)
    page.wait("return viewer.open")
    assert page.find("#name").text == name(start)
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert page.driver.switch_to.active_element == page.find("#map")
    key(Keys.ESCAPE)
    assert page.run("return look.selected") == -1


def test_keys_zoom_and_the_selected_image_stays_in_sight(page: MapPage) -> None:
    page.run("document.getElementById('map').focus()")
    key = page.driver.switch_to.active_element.send_keys
    fit = page.run("return view.fit")
    key("+", "+", "+", "+", "-")
    assert page.run("return view.scale") == pytest.approx(fit * 1.5**3)
    for _ in range(12):
        key(Keys.ARROW_RIGHT)
    x, y = page.place(page.run("return look.selected"))
    width, height = page.run("return [view.width, view.height]")
    assert 0 < x < width
    assert 0 < y < height
    key("0")
    assert page.run("return view.scale") == fit


def test_arrows_stay_among_what_is_shown(page: MapPage) -> None:
    page.legend("Cluster 0")
    page.run("document.getElementById('map').focus()")
    for _ in range(9):
        page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert page.run("return clusters[look.selected]") == 0


# Moving


def test_the_wheel_zooms_at_the_pointer_and_dragging_moves(page: MapPage) -> None:
    x, y = page.place(IMAGE)
    map_, fit = page.find("#map"), page.run("return view.fit")
    offset = round(x - map_.size["width"] / 2), round(y - map_.size["height"] / 2)
    top = page.run("return scrollY")
    ActionChains(page.driver).scroll_from_origin(ScrollOrigin.from_element(map_, *offset), 0, -400).perform()
    page.wait("return view.scale > 1.5 * arguments[0]", fit)
    after = page.place(IMAGE)
    assert after == (pytest.approx(x, abs=2), pytest.approx(y, abs=2))
    assert page.run("return scrollY") == top
    page.move(IMAGE).click_and_hold().move_by_offset(60, 30).release().perform()
    moved = page.place(IMAGE)
    assert moved == (pytest.approx(x + 60, abs=2), pytest.approx(y + 30, abs=2))
    assert not page.find("#panel-body").is_displayed()  # a drag is no click


def test_the_wheel_scrolls_the_page_where_there_is_nothing_to_zoom_out(page: MapPage) -> None:
    origin = ScrollOrigin.from_element(page.find("#map"))
    ActionChains(page.driver).scroll_from_origin(origin, 0, 300).perform()
    page.wait("return scrollY > 100")
    assert page.run("return view.scale === view.fit")


def test_two_fingers_zoom_and_a_tap_selects(page: MapPage) -> None:
    page.resize(390)
    page.load()
    box = page.run("const {left, top} = base.getBoundingClientRect(); return [left, top]")
    x, y = (round(a + b) for a, b in zip(page.place(IMAGE), box, strict=True))

    def touch(kind: str, *points: tuple[int, int]) -> None:
        touches = [{"x": a, "y": b, "id": number} for number, (a, b) in enumerate(points)]
        page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    try:
        touch("touchStart", (x, y))
        touch("touchEnd")
        page.wait("return look.selected === arguments[0]", IMAGE)
        page.run("document.getElementById('images-map').scrollIntoView()")
        box = page.run("const {left, top} = base.getBoundingClientRect(); return [left, top]")
        y = round(page.place(IMAGE)[1] + box[1])
        touch("touchStart", (x - 20, y), (x + 20, y))
        for reach in (30, 40, 60):
            touch("touchMove", (x - reach, y), (x + reach, y))
        touch("touchEnd")
        page.wait("return view.scale > 1.8 * view.fit")
        assert page.run("return getComputedStyle(base).touchAction") == "none"
    finally:
        page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


# Filter


def test_the_legend_shows_only_what_is_pressed(page: MapPage) -> None:
    lit, dim = page.ink(14), page.ink(EACH + 14)
    page.legend("Cluster 0")
    ActionChains(page.driver).move_to_element(page.find("h2")).perform()
    assert page.find("#map-shown").text == "36 of 108 images"
    assert page.ink(14) == lit
    assert page.ink(EACH + 14) != dim
    page.click(EACH + 14)
    assert not page.find("#panel-body").is_displayed()  # what is not shown cannot be clicked
    page.legend("Leaves")
    assert page.find("#map-shown").text == "72 of 108 images"
    page.find("#map-all").click()
    assert page.find("#map-shown").text == "108 images"
    assert page.all('#legend [aria-pressed="true"]') == []


def test_pointing_at_the_legend_highlights_a_cluster_for_the_time_being(page: MapPage) -> None:
    before = page.ink(EACH + 14)
    ActionChains(page.driver).move_to_element(page.all("#legend button")[0]).perform()
    assert page.ink(EACH + 14) != before
    ActionChains(page.driver).move_to_element(page.find("h2")).perform()
    assert page.ink(EACH + 14) == before
    assert page.find("#map-shown").text == "108 images"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("leaves", 36),
        ("cluster 2", 36),
        ("2", 36),
        ("OWL", 36),
        ("image-05", 10),
        ("folder 1/", 54),
        ("onerror", 1),
        ("x-y", 0),
    ],
)
def test_search_finds_clusters_labels_and_files(page: MapPage, text: str, count: int) -> None:
    page.find("#find").send_keys(text)
    assert page.find("#map-shown").text == f"{count} of 108 images"


def test_a_card_leads_to_its_cluster_on_the_map_and_back(page: MapPage) -> None:
    page.find("#cluster-2 .on-map").click()
    assert page.find("#map-shown").text == "36 of 108 images"
    assert page.run("return Math.abs($('images-map').getBoundingClientRect().top)") < 60
    page.click(2 * EACH + 14)
    page.type("leaves")  # hides the card
    page.find("#panel-cluster").click()
    assert page.clusters() == ["0", "1", "2"]


@pytest.mark.parametrize(("text", "clusters"), [("leaves", ["1"]), ("LEAVES <b>", ["1"]), ("1", ["1"]), ("owl", ["0"])])
def test_names_of_clusters_are_on_cards_and_found_by_their_filter(
    page: MapPage, text: str, clusters: list[str]
) -> None:
    assert page.find("#cluster-1 h3").text == "Leaves <b>"
    page.type(text)
    assert page.clusters() == clusters


def test_new_names_are_wherever_a_cluster_is(driver: webdriver.Chrome, tmp_path: Path) -> None:
    path, names = tmp_path / "report.html", {0: "</script><b>" + 80 * "x", 1: "'Owls' & \"cats\" 🦉", 2: "חתולים"}
    write_page(make_mapped_report(), path)
    assert rename_in_page(path, names)
    page = MapPage(driver, path.as_uri())
    page.resize(1280)
    page.load()
    assert [button.text for button in page.all("#legend button")] == [f"{name}\n{EACH}" for name in names.values()]
    assert page.find("#cluster-2 .on-map").accessible_name == f"Show {names[2]} on the map"
    page.move(IMAGE).perform()
    assert page.find("#tip-cluster").text == f"{names[1]}, label cat"
    page.click(IMAGE)
    assert page.find("#panel-details").text == f"{names[1]}, next nearest {names[2]}, uncertainty 0.56, label cat"
    assert page.find("#panel-cluster").text == f"All of {names[1]}"
    assert page.all("#panel-near .neighbor")[0].accessible_name.endswith(f", {names[1]}")
    page.find("#find").send_keys("owls")
    assert page.find("#map-shown").text == "36 of 108 images"
    page.resize(390)
    page.wait("return $('legend').clientWidth < 390 && $('legend').scrollWidth <= $('legend').clientWidth")
    assert driver.get_log("browser") == []


# Thumbnails


def test_thumbnails_stand_for_the_images_of_their_cells(page: MapPage) -> None:
    page.find("#map-images").click()
    page.wait("return sheets.length > 0 && sheets.every((sheet) => sheet instanceof ImageBitmap)")
    for cluster, ink in enumerate(INKS):
        owner = page.run("return cellOf(arguments[0]).owner", cluster * EACH + 14)
        assert max(abs(a - b) for a, b in zip(page.ink(owner), ink, strict=True)) < 12
        page.click(owner)
        assert page.selected() == (name(owner) if owner else HOSTILE)
    owners = page.run("return [...cellsOfView().owner.values()]")
    page.find("#map-in").click()
    assert set(owners) <= set(page.run("return [...cellsOfView().owner.values()]"))


# Looks


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_screen(page: MapPage, width: int, dark: bool) -> None:
    page.resize(width, dark)
    page.load()
    page.run("select(arguments[0])", IMAGE)
    scroll_width, client_width = page.run(
        "const {scrollWidth, clientWidth} = document.documentElement; return [scrollWidth, clientWidth]"
    )
    assert scroll_width <= client_width
    box = page.find("#stage").rect
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= client_width
    assert box["height"] >= 250
    page.run("visit(arguments[0])", IMAGE)
    page.wait("return viewer.open")
    viewer = page.find("#viewer")
    assert viewer.rect["x"] >= 0
    assert viewer.rect["x"] + viewer.rect["width"] <= width
    assert page.run("return viewer.scrollWidth <= viewer.clientWidth")


def test_the_map_follows_the_theme_while_it_is_open(page: MapPage) -> None:
    assert page.color(2, 2) == [255, 255, 255]
    light = page.ink(14)
    page.resize(1280, dark=True)
    page.wait("return theme.groundRgb[0] < 60")
    assert page.color(2, 2) == page.run("return theme.groundRgb")
    assert page.ink(14) != light


def test_a_screen_reader_hears_what_things_are(page: MapPage) -> None:
    assert page.find("#map").accessible_name == "Map of the images"
    assert page.find("#map").aria_role == "application"
    buttons = [button for button in page.all("#images-map button") if button.is_displayed()]
    assert all(button.accessible_name for button in buttons)
    page.click(IMAGE)
    assert page.find("#panel-open").accessible_name == f"Enlarge {NAME}"
    assert page.all("#panel-near .neighbor")[0].accessible_name == f"{name(IMAGE + 1)}, Leaves <b>"
    assert page.find("#map-said").get_attribute("aria-live") == "polite"
