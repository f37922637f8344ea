"""The figures show what they were given; and each arrives as a PNG."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from conr.report import figures
from conr.report.figures import Row

PRETRAIN: list[Row] = [
    {"epoch": 1, "loss": -1.0, "feature_std": None},
    {"epoch": 2, "loss": -1.5, "feature_std": 0.8, "acc": 0.5, "nmi": 0.4, "ari": 0.3},
]
FINETUNE: list[Row] = [
    {
        "epoch": 3,
        "loss": -1.2,
        "feature_std": 0.9,
        "size_entropy": 0.7,
        "candidate_fraction": 0.8,
        "acc": 0.6,
        "neighbor_purity": 0.5,
    },
    {"epoch": 4, "loss": float("nan"), "feature_std": 0.9, "size_entropy": 0.9, "candidate_fraction": 1.0, "acc": 0.9},
]
LABEL_KEYS = ("acc", "nmi", "ari", "neighbor_purity")


def without_labels(rows: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if key not in LABEL_KEYS} for row in rows]


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return np.asarray(image.convert("RGB"))


def share_of(pixels: np.ndarray, color: str) -> float:
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return float((np.abs(pixels.astype(int) - wanted).max(axis=-1) <= 2).mean())


class TestTraining:
    def test_panels_hold_the_measured_values(self) -> None:
        loss, scores, neighborhood = figures.training_figure(PRETRAIN, FINETUNE).axes
        curves = [line.get_xydata().tolist() for line in loss.lines if len(line.get_xdata())]
        assert curves[:2] == [[[1, -1.0], [2, -1.5]], [[3, -1.2]]]
        accuracy = [line.get_xydata().tolist() for line in scores.lines if to_hex(line.get_color()) == "#0072b2"]
        assert accuracy[:2] == [[[2, 0.5]], [[3, 0.6], [4, 0.9]]]
        assert [text.get_text() for text in scores.get_legend().get_texts()] == [
            "ACC, last 0.9",
            "NMI, last 0.4",
            "ARI, last 0.3",
        ]
        assert "neighbors" in neighborhood.get_legend().get_texts()[1].get_text()

    def test_connr_starts_at_a_line(self) -> None:
        for axes in figures.training_figure(PRETRAIN, FINETUNE).axes:
            assert axes.lines[-1].get_linestyle() == ":"
            assert list(axes.lines[-1].get_xdata()) == [2.5, 2.5]

    def test_without_labels_the_health_of_the_clusters_is_shown(self) -> None:
        _, health, _ = figures.training_figure(without_labels(PRETRAIN), without_labels(FINETUNE)).axes
        assert [text.get_text() for text in health.get_legend().get_texts()] == [
            "size entropy, last 0.9",
            "feature std, last 0.9",
        ]

    @pytest.mark.parametrize(
        ("pretrain", "finetune", "panels"),
        [([], [], 1), ([{"epoch": 1, "loss": None}], [], 1), (PRETRAIN, [], 2), ([], FINETUNE, 3)],
    )
    def test_missing_stages_and_values(
        self, pretrain: list[Row], finetune: list[Row], panels: int, tmp_path: Path
    ) -> None:
        assert len(figures.training_figure(pretrain, finetune).axes) == panels
        figures.save(figures.training_figure(pretrain, finetune), tmp_path / "curves.png")
        assert read(tmp_path / "curves.png").shape[1] == 8 * figures.DPI

    def test_file_shows_the_curves(self, tmp_path: Path) -> None:
        figures.save(figures.training_figure(PRETRAIN, FINETUNE), tmp_path / "curves.png")
        pixels = read(tmp_path / "curves.png")
        assert all(share_of(pixels, color) > 1e-4 for color in (figures.BLUE, figures.ORANGE, figures.GREEN))


class TestClusterSizes:
    def test_bars_are_sorted_and_named(self) -> None:
        (axes,) = figures.sizes_figure(np.array([30, 200, 5])).axes
        assert [bar.get_width() for bar in axes.patches[:3]] == [200, 30, 5]
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["1", "0", "2"]
        assert [text.get_text() for text in axes.texts] == ["200", "30", "5"]
        assert axes.get_title(loc="left") == "Images per cluster: 200 in the largest, 5 in the smallest"

    def test_mean_and_nearly_empty_clusters_are_marked(self) -> None:
        (axes,) = figures.sizes_figure(np.array([30, 200, 5])).axes
        assert list(axes.lines[0].get_xdata()) == [pytest.approx(235 / 3)] * 2
        assert [to_hex(bar.get_facecolor()).upper() for bar in axes.patches[:3]] == [
            figures.BLUE,
            figures.BLUE,
            figures.ORANGE,
        ]

    @pytest.mark.parametrize(("clusters", "named"), [(2, True), (40, True), (41, False), (200, False)])
    def test_many_clusters_are_thin_bars_without_text(self, clusters: int, named: bool, tmp_path: Path) -> None:
        sizes = np.arange(clusters)
        (axes,) = figures.sizes_figure(sizes).axes
        assert len(axes.texts) == (clusters if named else 0)
        figures.save(figures.sizes_figure(sizes), tmp_path / "sizes.png")
        assert 150 < read(tmp_path / "sizes.png").shape[0] < 2000

    def test_longer_bars_color_more_of_the_file(self, tmp_path: Path) -> None:
        figures.save(figures.sizes_figure(np.array([100, 100, 100])), tmp_path / "equal.png")
        figures.save(figures.sizes_figure(np.array([100, 20, 20])), tmp_path / "unequal.png")
        equal, unequal = (share_of(read(tmp_path / name), figures.BLUE) for name in ("equal.png", "unequal.png"))
        assert unequal / equal == pytest.approx(140 / 300, rel=0.05)


class TestConfusion:
    TABLE = np.array([[8, 2, 0], [0, 0, 0]])

    def test_shades_are_shares_of_the_class_and_texts_are_counts(self) -> None:
        axes = figures.confusion_figure(self.TABLE, ["cat", "$no dog$"], [4, 0, 2]).axes[0]
        np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 0.2, 0], [0, 0, 0]])
        assert [text.get_text() for text in axes.texts] == ["8", "2"]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["4", "0", "2"]
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat", r"\$no dog\$"]

    def test_a_name_that_is_no_text_is_drawn(self, tmp_path: Path) -> None:
        figure = figures.confusion_figure(np.eye(2, dtype=np.int64), ["K\udce4fer", "ant"], [0, 1])
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["K?fer", "ant"]
        figures.save(figure, tmp_path / "confusion.png")

    def test_many_columns_have_no_counts_and_fewer_ticks(self, tmp_path: Path) -> None:
        table, names = np.eye(200, dtype=np.int64), [f"a class with the long name {i}" for i in range(200)]
        axes = figures.confusion_figure(table, names, list(range(200))).axes[0]
        assert not axes.texts
        assert len(axes.get_xticks()) <= figures.MOST_TICKS
        assert max(len(tick.get_text()) for tick in axes.get_yticklabels()) <= 24
        figures.save(figures.confusion_figure(table, names, list(range(200))), tmp_path / "confusion.png")
        assert share_of(read(tmp_path / "confusion.png"), "#08306b") > 1e-3  # the diagonal


class TestMap:
    def test_numbers_stand_at_the_medians(self) -> None:
        points = np.array([[0, 0], [2, 0], [100, 0], [5, 5], [7, 7], [6, 6]], dtype=np.float32)
        (axes,) = figures.map_figure(points, np.array([3, 3, 3, 8, 8, 8])).axes
        positions = {text.get_text(): text.get_position() for text in axes.texts}
        assert positions == {"3": (2, 0), "8": (6, 6)}

    def test_points_carry_the_color_of_their_cluster(self) -> None:
        points = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
        clusters = np.repeat([0, 1, 2], 20)
        (axes,) = figures.map_figure(points, clusters).axes
        drawn = axes.collections[0]
        colors = {
            tuple(np.float32(position)): to_hex(color[:3])
            for position, color in zip(drawn.get_offsets(), drawn.get_facecolors(), strict=True)
        }
        for point, cluster in zip(points, clusters, strict=True):
            assert colors[tuple(point)] == figures.CLUSTER_COLORS[cluster].lower()

    def test_repeated_colors_lie_far_apart(self) -> None:
        line = np.stack([np.arange(40), np.zeros(40)], axis=1).astype(np.float32)
        colors = figures.map_colors(line)
        assert set(colors) == set(figures.CLUSTER_COLORS)
        for color in colors:
            assert np.diff([i for i, other in enumerate(colors) if other == color]).min() > 3

    def test_two_hundred_clusters(self, tmp_path: Path) -> None:
        generator = np.random.default_rng(0)
        clusters = generator.permutation(np.arange(1000) % 200)
        figures.save(
            figures.map_figure(generator.normal(size=(1000, 2)).astype(np.float32), clusters), tmp_path / "map.png"
        )
        assert share_of(read(tmp_path / "map.png"), "#000000") > 0.001  # the numbers


class TestGallery:
    def test_tiles_are_the_images_in_order(self) -> None:
        images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.full((6, 8, 8, 3), 10, dtype=np.uint8)
        canvas = figures.montage(images, [[5, 3], [], [1]])
        step = 48 + figures.GAP
        assert canvas.shape == (3 * step, 2 * step, 3)
        assert (canvas[:48, :48] == 50).all()
        assert (canvas[:48, step : step + 48] == 30).all()
        assert (canvas[step : 2 * step] == 255).all()
        assert (canvas[2 * step : 2 * step + 48, :48] == 10).all()

    @pytest.mark.parametrize(
        ("size", "tile"),
        [((8, 8), (48, 48)), ((32, 32), (64, 64)), ((96, 96), (96, 96)), ((240, 320), (72, 96)), ((1, 300), (1, 96))],
    )
    def test_tile_size(self, size: tuple[int, int], tile: tuple[int, int]) -> None:
        assert figures.tile_size(*size) == tile

    def test_small_images_keep_hard_pixels_in_the_file(self, tmp_path: Path) -> None:
        images = np.zeros((1, 8, 8, 3), dtype=np.uint8)
        images[0, ::2] = (200, 30, 60)
        figures.save(figures.gallery_figure(images, [[0]]), tmp_path / "gallery.png")
        pixels = read(tmp_path / "gallery.png")
        striped = (pixels == (200, 30, 60)).all(axis=-1)
        assert striped.sum() == 48 * 48 / 2  # no blended pixel between the stripes

    def test_rows_are_numbered_and_the_rest_is_counted(self) -> None:
        images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
        figure = figures.gallery_figure(images, [[0], []] * 20)
        texts = [text.get_text() for text in figure.axes[0].texts if text.get_text() != "no images"]
        assert texts == [str(number) for number in range(30)]
        assert "10 more clusters are not shown here" in [text.get_text() for text in figure.texts]


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        figures.save(figures.sizes_figure(np.array([3, 1])), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
