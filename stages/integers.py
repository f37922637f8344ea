"""Several values in one flag: whole numbers (--seeds 0,1,2), texts (--exclude '*.gif,thumbs'), pairs (0:0.75,0.8:1)."""

from typing import Annotated

import typer


class Integers(list[int]):
    """A type of its own, so that Typer takes one flag for all of them."""


def integers(value: str | list[int]) -> list[int]:
    """From a flag, or from the list that params.yaml gives as its default."""
    if not isinstance(value, str):
        return list(value)
    try:
        return [int(part) for part in value.replace(",", " ").split()]
    except ValueError as error:
        raise typer.BadParameter(f"{value!r} should be whole numbers such as 0,1,2") from error


SeedsFlag = Annotated[
    Integers, typer.Option(parser=integers, metavar="0,1,2", help="Seeds; every row is run with each")
]
RowsFlag = Annotated[Integers, typer.Option(parser=integers, metavar="1,2,3", help="Rows of the table, from 1 to 7")]


class Texts(list[str]):
    """As `Integers`."""


def texts(value: str | list[str]) -> list[str]:
    """From a flag, with commas between them, or from the list that params.yaml gives as its default."""
    if not isinstance(value, str):
        return list(value)
    return [part.strip() for part in value.split(",") if part.strip()]


class Pairs(list[list[float]]):
    """As `Integers`."""


def pairs(value: str | list[list[float]]) -> list[list[float]]:
    """From a flag such as 0:0.75,0.8:1, or from the list that params.yaml gives as its default."""
    if not isinstance(value, str):
        return value
    try:
        found = [[float(number) for number in part.split(":")] for part in value.split(",") if part.strip()]
    except ValueError:
        found = [[]]
    if not all(len(pair) == 2 for pair in found):
        raise typer.BadParameter(f"{value!r} should be pairs of numbers such as 0:0.75,0.8:1")
    return found
