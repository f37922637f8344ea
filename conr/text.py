"""Text from outside (file names, labels, messages of libraries), made safe for terminals and spreadsheets."""

import unicodedata

# They turn the direction of all that follows: "gpj.exe" would read "exe.jpg".
BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, separators of lines and paragraphs
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: object, keep: str = "") -> str:
    r"""Text that a terminal shows and does not obey: each character that acts becomes an escape.

    Args:
        text: anything; what is no string becomes one.
        keep: characters that stay as they are, such as the line breaks of one's own layout.

    >>> from conr.text import printable
    >>> print(printable("a\x1b]52;c;cm0=\x07b\n"), printable("one\ntwo", keep="\n"))
    a\x1b]52;c;cm0=\x07b\n one
    two
    """
    return "".join(
        char if char in keep or not _acts(char) else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in str(text)
    )


def no_formula(cell: str) -> str:
    """A cell that a spreadsheet takes for text: an apostrophe stands before what it would take for a formula.

    The standard remedy (OWASP), and one that changes the cell: a program that needs the exact name removes the
    apostrophe where one of = + - @ or a tab follows it.

    >>> from conr.text import no_formula
    >>> no_formula("=1+2"), no_formula("a=1")
    ("'=1+2", 'a=1')
    """
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def counted(number: int, one: str, more: str | None = None) -> str:
    """A number and what it counts, for one thing or for more; more than one has an s unless it is given.

    >>> from conr.text import counted
    >>> counted(1, "image"), counted(1200, "image"), counted(2, "class", "classes")
    ('1 image', '1,200 images', '2 classes')
    """
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def _acts(char: str) -> bool:
    return char in BIDIRECTIONAL or unicodedata.category(char) in UNPRINTABLE
