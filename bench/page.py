"""The page of 60,000 images and 200 clusters: how long it takes to make, its size, how long it takes to open.

    make bench-page      # about three minutes on two CPU cores; opening needs chromium and chromedriver

Images are smooth with some noise, which makes sprites as large as those of CIFAR-10's. Seconds on the clock, and of the
processor, which other work on the machine changes less.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import Turns, head, line, parser
from numpy.typing import NDArray
from PIL import Image

from conr.evaluation.assignment import Assignment, assign
from conr.evaluation.plane import embedding_map, nearest_images
from conr.evaluation.scores import MeanStd
from conr.report import figures
from conr.report.map import ImageMap
from conr.report.page import ClusterCard, Report, Sample, write_page

EDGE, DIMENSION, GALLERY, SEED = 32, 128, 24, 0
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=60_000)
    options.add_argument("--clusters", type=int, default=200)
    options.add_argument("--keep", type=Path, help="where to write the page, instead of a temporary folder")
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = given.keep or folder / "report.html"
        print(head("", "wall, s", "CPU, s"))
        make(given.images, given.clusters, folder, path)
        print(f"\n{path.stat().st_size / 1e6:.1f} MB\n")
        if shutil.which("chromium") and shutil.which("chromedriver"):
            print(head("opening, median of 5", "ms"))
            for name, milliseconds in opened(path, folder).items():
                print(line(name, f"{statistics.median(milliseconds):,.0f}"))


def make(count: int, clusters: int, folder: Path, path: Path) -> None:
    """Write the page of so many images, and print what each part takes."""
    images, embeddings, centroids = pictures(count, folder), *vectors(count, clusters)
    assignment = assign(embeddings, centroids)
    positions = measured("positions of all images", lambda: embedding_map(embeddings, SEED))
    neighbors = measured("nearest images of all images", lambda: nearest_images(embeddings, 8))
    found = ImageMap(
        images=images,
        points=np.arange(count),
        positions=positions,
        clusters=assignment.clusters,
        next_clusters=assignment.next_cluster,
        boundary_ratios=assignment.boundary_ratio,
        files=[f"photos/{number % 40:03}/IMG_{number:08}.jpg" for number in range(count)],
        labels=None,
        neighbors=neighbors,
    )
    measured("map as text, with its sprites", found.encoded)
    cards = [card(number, found, assignment) for number in range(clusters)]
    typical = [[sample.image or 0 for sample in one.typical] for one in cards]
    figures.save(figures.map_figure(positions, assignment.clusters), folder / "map.png")
    figures.save(figures.gallery_figure(images, typical), folder / "gallery.png")
    scores = {"k-means": {"silhouette": MeanStd(0.1, None, 1)}}
    captions = [(name, folder / f"{name}.png") for name in ("map", "gallery")]
    report = Report(f"{count:,} images", [], scores, [], captions, cards, map=found)
    measured("page", lambda: write_page(report, path))


def measured(name: str, call: Callable[[], Any]) -> Any:
    """What a call returns; its time is printed."""
    turns = Turns()
    found = turns.measure(call)
    print(line(name, f"{turns.seconds:.1f}", f"{statistics.median(turns.processor):.1f}"), flush=True)
    return found


def pictures(count: int, folder: Path) -> NDArray[np.uint8]:
    """(count, 32, 32, 3) uint8 in a memory-mapped file: smooth, with noise."""
    generator = np.random.default_rng(SEED)
    path = folder / "images.npy"
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, EDGE, EDGE, 3))
    for number in range(count):
        small = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(small).resize((EDGE, EDGE), Image.Resampling.BICUBIC))
        images[number] = np.clip(image + generator.normal(scale=12, size=image.shape), 0, 255)
    images.flush()
    return np.load(path, mmap_mode="r")


def vectors(count: int, clusters: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(count, 128) unit vectors around as many centers as there are clusters, and the centers."""
    generator = np.random.default_rng(SEED)
    centers = generator.normal(size=(clusters, DIMENSION))
    rows = centers[np.arange(count) % clusters] + 1.2 * generator.normal(size=(count, DIMENSION))
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (rows, centers)]
    return unit[0].astype(np.float32), unit[1].astype(np.float32)


def card(number: int, found: ImageMap, assignment: Assignment) -> ClusterCard:
    """A cluster with as many images as the default shows."""
    members = np.flatnonzero(assignment.clusters == number)
    ranked = members[np.argsort(assignment.own_distance[members])]
    samples = [
        Sample(found.files[image], found.images[image], 0.5, None, int(assignment.next_cluster[image]), int(image))
        for image in [*ranked[:GALLERY], *ranked[::-1][: GALLERY // 2]]
    ]
    share = len(members) / len(found.points)
    return ClusterCard(number, len(members), share, 0.5, None, 0.0, samples[:GALLERY], samples[GALLERY:])


def opened(path: Path, folder: Path) -> dict[str, list[float]]:
    """Milliseconds from the start of loading, in a real browser without a graphics card."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in [*FLAGS, f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    found: dict[str, list[float]] = {}
    try:
        driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        for _ in range(5):
            driver.get("about:blank")
            driver.get(path.resolve().as_uri())
            time.sleep(3)
            for name, value in times(driver).items():
                found.setdefault(name, []).append(value)
    finally:
        driver.quit()
    return found


def times(driver: Any) -> dict[str, float]:
    """What the browser and the page know of their times."""
    script = """const [entry] = performance.getEntriesByType("navigation");
    const timed = () => { const start = performance.now(); drawPoints(); return performance.now() - start; };
    return {
      "first paint": performance.getEntriesByName("first-paint")[0]?.startTime ?? NaN,
      "interactive": entry.domInteractive,
      "map drawn": Number(document.getElementById("stage").dataset.drawn),
      "drawing the map again": [1, 2, 3, 4, 5].map(timed).sort((a, b) => a - b)[2],
    };"""
    metrics = {row["name"]: row["value"] for row in driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]}
    found: dict[str, float] = driver.execute_script(script)
    return found | {"processor, the page's main thread": 1000 * metrics["TaskDuration"]}


if __name__ == "__main__":
    main()
