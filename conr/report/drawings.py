"""Figures of which none can cost the results: one that cannot be drawn becomes a note, and the others are drawn."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from conr.errors import disk_is_full, one_line
from conr.report.figures import save


class Drawings:
    """Figures in a folder.

    Attributes:
        folder: where they are.
        captions: caption and file of each that was drawn.
        notes: a sentence for each that was not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.captions: list[tuple[str, Path]] = []
        self.notes: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, caption: str, draw: Callable[[], Figure]) -> None:
        """Draw a figure and save it as `name`.png.

        Raises:
            OSError: the disk is full; then the results cannot be written either.
        """
        path = self.folder / f"{name}.png"
        try:
            save(draw(), path)
        except Exception as error:
            raise_if_full(error)
            self.notes.append(f"The figure “{caption}” could not be drawn ({reason(error)}).")
        else:
            self.captions.append((caption, path))


def raise_if_full(error: Exception) -> None:
    """Raise an error again if it says that the disk is full: that costs more than a figure."""
    if disk_is_full(error):
        raise error


def reason(error: Exception) -> str:
    """The class of an error and its message, on one line."""
    return f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
