"""Fonts for the figures: those that are installed, and names of characters that all of them can draw."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import matplotlib
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

# The first comes with matplotlib. The others are tried in this order, for the scripts and signs that it lacks; fonts of
# colored emoji are not among them: matplotlib cannot draw those.
FAMILIES = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "IPAGothic",
    "TakaoGothic",
    "NanumGothic",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
    "Noto Sans",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Emoji",
    "Symbola",
    "Segoe UI Emoji",
)


@cache
def families() -> list[str]:
    """The installed ones of `FAMILIES`: matplotlib draws each character with the first that has it."""
    installed = {font.name for font in fontManager.ttflist}
    return [name for name in FAMILIES if name in installed]


@cache
def _characters() -> frozenset[int]:
    """What these fonts can draw."""
    return frozenset(
        code for name in families() for code in get_font(findfont(FontProperties(family=[name]))).get_charmap()
    )


def drawable(text: str) -> str:
    r"""Text of characters that can be drawn: another one becomes its escape, so that different names stay different.

    >>> from conr.report.fonts import drawable
    >>> drawable("Käfer\x1b")
    'Käfer\\x1b'
    """
    return "".join(
        char if ord(char) in _characters() else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )


@contextmanager
def installed_fonts() -> Iterator[None]:
    """Draw with these fonts, without warnings of any character."""
    with matplotlib.rc_context({"font.family": families()}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield
