"""The paper's figures show what they were given."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from conr.neighbors.study import PurityCurves, Retrieval
from conr.report import paper_figures
from conr.report.figures import BLUE, DPI, GREEN, ORANGE, save, tile_size
from conr.report.paper_figures import GRAY, RED

CURVES = PurityCurves(
    neighbors=np.arange(1, 4),
    local=np.array([0.9, 0.8, 0.7]),
    conaff=np.array([0.95, 0.9, 0.85]),
    conaff_filtered=np.array([np.nan, 0.95, 0.9]),
)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


class TestPurity:
    def test_the_curves_hold_the_values_in_percent(self) -> None:
        figure = paper_figures.purity_figure(CURVES)
        lines = figure.axes[0].lines
        assert legend(figure) == ["Euclidean", "ConAff", "ConAff, boundary filter"]
        for line, values in zip(lines, (CURVES.local, CURVES.conaff, CURVES.conaff_filtered), strict=True):
            assert line.get_xdata().tolist() == [1, 2, 3]
            np.testing.assert_allclose(line.get_ydata(), 100 * values)

    def test_the_curves_differ_in_color_and_in_style(self) -> None:
        lines = paper_figures.purity_figure(CURVES).axes[0].lines
        assert [line.get_color() for line in lines] == [BLUE, ORANGE, GREEN]
        assert len({line.get_linestyle() for line in lines}) == len({line.get_marker() for line in lines}) == 3

    def test_it_arrives_as_a_file(self, tmp_path: Path) -> None:
        save(paper_figures.purity_figure(CURVES), tmp_path / "purity.png")
        with Image.open(tmp_path / "purity.png") as image:
            assert image.format == "PNG"
            assert image.width == 8 * DPI


RETRIEVALS = [
    Retrieval(0, np.array([1, 2]), np.array([1, 3]), ["right", "wrong"], ["right", "hard positive"]),
    Retrieval(3, np.array([4, 0]), np.array([4, 1]), [None, "wrong"], [None, "wrong"]),
]
FLAT = (np.arange(1, 6, dtype=np.uint8) * 40)[:, None, None, None] * np.ones((5, 8, 8, 3), dtype=np.uint8)


def canvas(figure: Figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


def frames(figure: Figure) -> list[tuple[float, float, str, str]]:
    """x, y, color and line style of the frames around tiles, in reading order; those of the legend left out."""
    found = [
        (patch.get_x() + 3.5, patch.get_y() + 3.5, to_hex(patch.get_edgecolor()).upper(), patch.get_linestyle())
        for patch in figure.axes[0].patches
        if isinstance(patch, Rectangle) and not patch.get_fill() and patch.get_width() > 40
    ]
    return sorted(found, key=lambda frame: (frame[1], frame[0]))


def marks(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if len(text.get_text()) == 1]


class TestNeighbors:
    def test_tiles_are_the_images_under_their_frames(self) -> None:
        figure = paper_figures.neighbors_figure(FLAT, RETRIEVALS)
        pixels = canvas(figure)
        expected = [(3, RED, "--"), (4, GREEN, "-"), (5, GRAY, ":"), (1, RED, "--"), (5, GRAY, ":"), (2, RED, "--")]
        for (x, y, color, style), (shade, *wanted) in zip(frames(figure), expected, strict=True):
            assert [color, style] == wanted
            tile = pixels[round(y) : round(y) + 48, round(x) : round(x) + 48]
            assert (tile == 40 * shade).all()

    def test_rows_are_named_and_queries_stand_left_of_them(self) -> None:
        figure = paper_figures.neighbors_figure(FLAT, RETRIEVALS, ["owl", "cat"])
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert [text for text in texts if text in {"Euclidean", "ConAff", "owl", "cat"}] == [
            "owl",
            "Euclidean",
            "ConAff",
            "cat",
            "Euclidean",
            "ConAff",
        ]
        left = canvas(figure)[:, 16:64]
        assert sorted(set(left.flatten().tolist())) == [40, 160, 255]  # the queries 0 and 3 on white

    def test_frames_are_explained_and_marked_apart_from_their_color(self) -> None:
        figure = paper_figures.neighbors_figure(FLAT, RETRIEVALS)
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert texts[0].startswith("Euclidean")
        assert {"other class", "hard positive: same class, not in the row above", "unknown"} <= set(texts)
        assert {mark: marks(figure).count(mark) for mark in "×+?"} == {"×": 4, "+": 2, "?": 3}

    def test_without_labels_there_are_no_frames(self, tmp_path: Path) -> None:
        unknown = [Retrieval(0, np.array([1, 2]), np.array([2, 1]), [None] * 2, [None] * 2)]
        figure = paper_figures.neighbors_figure(FLAT, unknown)
        assert not frames(figure)
        assert any(text.get_text().startswith("Without labels") for text in figure.axes[0].texts)
        save(figure, tmp_path / "neighbors.png")
        with Image.open(tmp_path / "neighbors.png") as image:
            np.testing.assert_array_equal(
                np.asarray(image.convert("RGB"))[:, 192:][108:300], canvas(figure)[:, 192:][108:]
            )

    @pytest.mark.parametrize("edge", [8, 32, 300])
    def test_frames_do_not_touch_other_tiles(self, edge: int) -> None:
        images = np.zeros((5, edge, edge, 3), dtype=np.uint8)
        found = frames(paper_figures.neighbors_figure(images, RETRIEVALS))
        width = tile_size(edge, edge)[1]
        columns = sorted({x for x, *_ in found})
        assert np.diff(columns).min() >= width + 2 * 9  # a frame and its mark reach 9 pixels out

    def test_a_long_name_stays_left_of_the_row_titles(self) -> None:
        figure = paper_figures.neighbors_figure(FLAT, RETRIEVALS, ["a_very_long_name_" * 5, "two words or more"])
        figure.draw_without_rendering()
        boxes = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
        names = [box for name, box in boxes.items() if name.startswith(("a_very", "two"))]
        assert len(names) == 2
        assert max(box.x1 for box in names) < boxes["ConAff"].x0


RUNS = [
    {"fr": fr, "k1": k1, "k2": 2.0, "acc": acc, "nmi": acc - 0.1}
    for fr, k1, acc in ((1.0, 10, 0.80), (0.7, 20, 0.90), (0.7, 20, 0.94), (0.8, 20, float("nan")))
]


class TestSweep:
    def test_points_are_means_and_bars_are_standard_deviations(self) -> None:
        figure = paper_figures.sweep_figure(RUNS, "fr")
        axes = figure.axes[0]
        accuracy, information = axes.containers
        assert legend(figure) == ["ACC", "NMI"]
        np.testing.assert_allclose(accuracy.lines[0].get_xydata()[:, 1], [92, 80])
        np.testing.assert_allclose(information.lines[0].get_xydata()[:, 1], [82, 70])
        first, second = (segment[:, 1] for segment in accuracy.lines[2][0].get_segments())
        np.testing.assert_allclose(first, 92 + np.std([90, 94], ddof=1) * np.array([-1, 1]))
        np.testing.assert_allclose(second, [80, 80])
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.7", "0.8", "1"]
        assert accuracy.lines[0].get_linestyle() != information.lines[0].get_linestyle()

    def test_the_title_says_how_many_runs_stand_behind_a_mean(self) -> None:
        titles = [
            paper_figures.sweep_figure(runs, "fr").axes[0].get_title(loc="left")
            for runs in (RUNS[:1], RUNS[1:3], RUNS[:3])
        ]
        assert titles == [
            "Scores against fr",
            "Scores against fr: mean ± standard deviation of 2 runs",
            "Scores against fr: mean ± standard deviation of 1 to 2 runs",
        ]

    def test_a_pair_is_a_heat_map_with_the_numbers(self, tmp_path: Path) -> None:
        runs = [*RUNS, {"k1": 20, "k2": 5.0, "acc": 0.85}, {"k1": 30, "k2": None, "acc": 0.5}]
        axes = paper_figures.pair_sweep_figure(runs, "k1", "k2").axes[0]
        shown = np.ma.filled(axes.images[0].get_array(), np.nan)
        np.testing.assert_allclose(shown, [[80, np.nan], [92, 85], [np.nan, np.nan]])
        assert {text.get_text(): text.get_position() for text in axes.texts} == {
            "80.0": (0, 0),
            "92.0\n± 2.8": (0, 1),
            "85.0": (1, 1),
        }
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["10", "20", "30"]
        save(paper_figures.pair_sweep_figure(runs, "k1", "k2"), tmp_path / "pair.png")
        save(paper_figures.sweep_figure(runs, "k1"), tmp_path / "sweep.png")
        assert all((tmp_path / name).stat().st_size > 5_000 for name in ("pair.png", "sweep.png"))


class TestScoreCurves:
    LOGS = {  # noqa: RUF012
        "BYOL": [[{"epoch": 1, "acc": 0.5}, {"epoch": 2, "acc": None}, {"epoch": 3, "acc": 0.6}]],
        "ConNR": [
            [{"epoch": 1, "acc": 0.6}, {"epoch": 3, "acc": 0.8}],
            [{"epoch": 1, "acc": 0.7}, {"epoch": 3, "acc": 0.9}],
        ],
    }

    def test_lines_are_means_and_the_band_is_one_standard_deviation(self) -> None:
        figure = paper_figures.score_curves_figure(self.LOGS)
        byol, connr = figure.axes[0].lines
        assert legend(figure) == ["BYOL", "ConNR"]
        np.testing.assert_allclose(byol.get_xydata(), [[1, 50], [3, 60]])
        np.testing.assert_allclose(connr.get_xydata(), [[1, 65], [3, 85]])
        assert byol.get_linestyle() != connr.get_linestyle()
        (band,) = figure.axes[0].collections  # a single seed has none
        std = np.std([60, 70], ddof=1)
        edges = band.get_paths()[0].vertices
        at_three = edges[edges[:, 0] == 3][:, 1]
        assert [at_three.min(), at_three.max()] == pytest.approx([85 - std, 85 + std])

    def test_the_seven_rows_of_table_2_look_different(self, tmp_path: Path) -> None:
        logs = {f"row {i}": self.LOGS["BYOL"] for i in range(7)}
        lines = paper_figures.score_curves_figure(logs).axes[0].lines
        assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 7
        save(paper_figures.score_curves_figure(logs), tmp_path / "curves.png")
        assert (tmp_path / "curves.png").stat().st_size > 5_000
