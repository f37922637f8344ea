"""Figures of names and numbers that nobody expects: nothing is cut, no box stands for a sign, no warning is printed."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from embedded_run import embedded, groups
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from conr.pipeline.evaluate import evaluate
from conr.report import figures, fonts, paper_figures
from conr.report.figures import Row
from conr.report.fonts import drawable

NAMES = [
    "猫と犬",
    "😺\U0001f9ff",
    "a very long name of a class",
    "naïve Ünïcode ½",
    "$x$",
    "\x1b[2J\t",
]
LONG = "finetune.scattering_temperature", "pretrain.scattering_temperature"
ROWS: list[Row] = [
    {"epoch": epoch, "loss": 1.0, "acc": 0.5, "nmi": 0.123456, "candidate_fraction": 0.8, "neighbor_purity": 0.5}
    for epoch in (1, 2)
]
SWEPT: list[Row] = [{LONG[0]: a, LONG[1]: b, "acc": 0.5} for a in (0.1, 0.2) for b in (0.1, 0.2) for _ in range(3)]

DRAWN: dict[str, Callable[[], Figure]] = {
    "two classes": lambda: figures.confusion_figure(np.diag([1234, 1]), ["m" * 30, "b"], [0, 1]),
    "names": lambda: figures.confusion_figure(np.eye(6, dtype=np.int64), NAMES, list(range(6))),
    "sizes": lambda: figures.sizes_figure(np.array([123_456_789, 1])),
    "one size": lambda: figures.sizes_figure(np.array([7])),
    "training": lambda: figures.training_figure(ROWS, ROWS),
    "gallery": lambda: figures.gallery_figure(np.zeros((1, 8, 8, 3), dtype=np.uint8), [[0], []] * 20),
    "map": lambda: figures.map_figure(np.zeros((4, 2), dtype=np.float32), np.array([0, 0, 1, 1])),
    "sweep": lambda: paper_figures.sweep_figure(SWEPT, LONG[0]),
    "pair": lambda: paper_figures.pair_sweep_figure(SWEPT, *LONG),
    "curves": lambda: paper_figures.score_curves_figure({name * 40: [ROWS, ROWS] for name in "abcde"}),
}


def titles_and_legends(figure: Figure) -> list[Text]:
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [text for text in axes.findobj(Text) if text.get_text() and text.get_text() == axes.get_title("left")]
        legend = axes.get_legend()
        texts += legend.get_texts() if legend is not None else []
        texts += [axes.xaxis.label, axes.yaxis.label]
    return [text for text in texts if text.get_text()]


@pytest.mark.parametrize("name", DRAWN)
def test_no_title_legend_or_label_is_cut_or_warned_of(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = DRAWN[name]()
        figures.save(figure, tmp_path / "figure.png")
    canvas = FigureCanvasAgg(figure)
    with fonts.installed_fonts():
        canvas.draw()
    width, height = canvas.get_width_height()
    texts = titles_and_legends(figure)
    assert texts
    for text in texts:
        box = text.get_window_extent(canvas.get_renderer())
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, (text.get_text(), box, (width, height))


def test_signs_that_no_font_has_are_codes_and_different_names_stay_different() -> None:
    assert drawable("naïve Ünïcode ½ ×") == "naïve Ünïcode ½ ×"
    assert drawable("a\U0010fffdb\x1b") == r"a\U0010fffdb\x1b"
    assert len({drawable(name) for name in ("猫", "犬", "鸟")}) == 3


def test_fonts_are_installed_ones_and_the_first_comes_with_matplotlib() -> None:
    assert fonts.families()[0] == "DejaVu Sans"
    assert set(fonts.families()) <= {font.name for font in fonts.fontManager.ttflist}


def test_a_font_that_is_installed_draws_what_others_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    """STIX, which comes with matplotlib, stands for a font of another script."""
    sign = next(chr(code) for code in sorted(coverage("STIXGeneral") - coverage("DejaVu Sans")) if code > 0x2000)
    assert drawable(sign).startswith("\\")
    monkeypatch.setattr(fonts, "FAMILIES", ("DejaVu Sans", "STIXGeneral", "Not Installed"))
    fonts.families.cache_clear()
    fonts._characters.cache_clear()
    assert fonts.families() == ["DejaVu Sans", "STIXGeneral"]
    assert drawable(sign) == sign
    monkeypatch.undo()
    fonts.families.cache_clear()
    fonts._characters.cache_clear()


def coverage(family: str) -> set[int]:
    return set(fonts.get_font(fonts.findfont(fonts.FontProperties(family=[family]))).get_charmap())


def test_classes_of_any_name_are_drawn_and_codes_are_explained(tmp_path: Path) -> None:
    labels = ["猫\U0010fffd", "犬\U0010fffd"] * 12
    workspace, parameters = embedded(tmp_path, groups([12, 8, 4], noise=0.1), labels=labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Gg]lyph.*")
        evaluate(workspace, parameters)
    assert (workspace.figures / "confusion.png").exists()
    assert "they are written as codes" in workspace.summary.read_text()
    assert "猫" in workspace.report.read_text()
