"""Several values in one flag: whole numbers, as in --seeds 0,1,2, or texts, as in --exclude '*.gif,thumbs'."""

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
