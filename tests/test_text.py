"""Text from outside cannot act on a terminal, and a cell cannot be a formula."""

import csv
import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conr.text import no_formula, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;cm0gLXJmIC8=\x07.png", r"\x1b]52;c;cm0gLXJmIC8=\x07.png"),  # would write to the clipboard
        ("\x1b]0;title\x07\x1b[2J\x1b[H", r"\x1b]0;title\x07\x1b[2J\x1b[H"),
        ("\x9b2J\x7f\x00\b\r\n\t", r"\x9b2J\x7f\x00\x08\r\n\t"),
        ("invoice\u202egpj.exe", r"invoice\u202egpj.exe"),
        ("a\u2028b\u2066c", r"a\u2028b\u2066c"),
        ("K\udce4fer", r"K\udce4fer"),
        ("Müller 猫 🐱 עברית 👩‍🔬 C:\\x.png", "Müller 猫 🐱 עברית 👩‍🔬 C:\\x.png"),
    ],
)
def test_what_acts_becomes_visible_and_the_rest_stays(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(categories=["Cc", "Cs", "Cf", "Zl", "Zp", "Lu", "So"])))
def test_nothing_that_is_shown_acts(text: str) -> None:
    shown = printable(text)
    assert {unicodedata.category(char) for char in shown}.isdisjoint(["Cc", "Cs", "Zl", "Zp"])
    assert shown == printable(shown)
    shown.encode()


def test_line_breaks_of_a_layout_are_kept_and_errors_are_text() -> None:
    assert printable("one\n\x1btwo", keep="\n") == "one\n\\x1btwo"
    assert printable(ValueError("a\x07")) == r"a\x07"


@pytest.mark.parametrize("cell", ["=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("x")'])
def test_a_formula_becomes_text_that_csv_keeps(cell: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow([no_formula(cell)])
    assert next(csv.reader(io.StringIO(file.getvalue(), newline=""))) == [f"'{cell}"]


@pytest.mark.parametrize("cell", ["", "a=1", "1-2", "'=1", "cat", "ä"])
def test_other_cells_stay(cell: str) -> None:
    assert no_formula(cell) == cell
