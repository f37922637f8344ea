"""The page stays small enough for a browser, however many clusters there are and however large the photos."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conr.report import figures, page
from conr.report.page import ClusterCard, Report, Sample, write_page

NOTE = re.compile(r"The page shows ([\d,]+) images of the ([\d,]+) that evaluate\.gallery asks for")


def photo(edge: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth, as photos are."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((edge, edge), Image.Resampling.BICUBIC))


def cards(clusters: int, typical: int, pixels: NDArray[np.uint8]) -> list[ClusterCard]:
    def samples(cluster: int, count: int) -> list[Sample]:
        return [Sample(f"{cluster}-{number}.jpg", pixels, 0.5, None, 0) for number in range(count)]

    return [
        ClusterCard(number, 100 - number, 0.1, 0.5, None, 0.0, samples(number, typical), samples(number, typical // 2))
        for number in range(clusters)
    ]


def written(clusters: list[ClusterCard], folder: Path) -> str:
    write_page(Report("Clusters", [], {}, [], [], clusters), folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def shown(html: str) -> list[int]:
    """Thumbnails of each card."""
    return [part.count('class="thumb"') for part in html.split("<article")[1:]]


def images(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/[a-z]+;base64,([^"]*)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]


@pytest.mark.parametrize(("edge", "kind"), [(32, "PNG"), (96, "JPEG"), (224, "JPEG")])
def test_photos_are_jpeg_and_small_images_keep_their_pixels(edge: int, kind: str, tmp_path: Path) -> None:
    pixels = photo(edge)
    (image,) = images(written(cards(1, 1, pixels), tmp_path))
    assert image.format == kind
    assert image.size == (min(edge, 128),) * 2
    if kind == "PNG":
        np.testing.assert_array_equal(np.asarray(image), pixels)
    else:
        reduced = np.asarray(Image.fromarray(pixels).resize(image.size, Image.Resampling.LANCZOS))
        assert np.abs(np.asarray(image).astype(int) - reduced).mean() < 4


def test_flat_graphics_stay_png(tmp_path: Path) -> None:
    pixels = np.full((128, 128, 3), 255, dtype=np.uint8)
    pixels[40:80, 40:80] = (200, 30, 60)
    (image,) = images(written(cards(1, 1, pixels), tmp_path))
    assert image.format == "PNG"


@pytest.mark.parametrize("edge", [32, 128])
def test_too_many_thumbnails_are_fewer_of_every_cluster(
    edge: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "THUMBNAILS", 200_000)
    html = written(cards(20, 12, photo(edge)), tmp_path)
    assert len(html) < 200_000 + 40_000  # style, script and cards beside the thumbnails
    assert len(set(shown(html))) == 1
    assert 0 < shown(html)[0] < 18
    found = NOTE.search(html)
    assert found is not None
    assert found[1] == str(sum(shown(html)))
    assert found[2] == str(20 * 18)


def test_very_many_clusters_show_images_of_the_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "THUMBNAILS", 50_000)
    html = written(cards(60, 4, photo(128)), tmp_path)
    counts = shown(html)
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (1, 0)
    assert html.count("<article") == 60


def test_a_page_that_is_small_enough_has_no_note(tmp_path: Path) -> None:
    html = written(cards(20, 12, photo(32)), tmp_path)
    assert shown(html) == [18] * 20
    assert not NOTE.search(html)


def test_a_large_figure_is_jpeg_on_the_page_and_png_as_a_file(tmp_path: Path) -> None:
    photos = np.stack([photo(96, seed) for seed in range(9)])
    noise = np.random.default_rng(0).integers(-20, 20, photos.shape)
    photos = np.clip(photos + noise, 0, 255).astype(np.uint8)
    paths = {"gallery": [list(range(9))] * 4, "small": [[0]]}
    for name, order in paths.items():
        figures.save(figures.gallery_figure(photos, order), tmp_path / f"{name}.png")
    listed = [(name, tmp_path / f"{name}.png") for name in paths]
    write_page(Report("Figures", [], {}, [], listed, []), tmp_path / "report.html")
    large, small = images((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert (large.format, small.format) == ("JPEG", "PNG")
    assert (tmp_path / "report.html").stat().st_size < (tmp_path / "gallery.png").stat().st_size
