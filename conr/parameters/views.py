"""The group of params.yaml that says how random views of an image are made."""

from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from conr.parameters.groups import Group, Probability

MOST_SIZES = 8  # of views: PyTorch compiles a function this often


def _resolution(value: object) -> object:
    """What is written for the sizes of views, if it can be."""
    if isinstance(value, list) and len(value) <= MOST_SIZES and all(_is_pair(pair) for pair in value):
        shares = [share for share, _ in value]
        if shares == sorted(set(shares)) and shares[:1] in ([], [0]):
            return value
    raise PydanticCustomError(
        "resolution",
        f"[] or at most {MOST_SIZES} pairs [share of the schedule, size] such as [[0, 0.75], [0.6, 0.875], [0.8, 1]]; "
        "the shares start at 0, ascend and are below 1, and the sizes are above 0 and at most 1",
    )


def _is_pair(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    share, size = value
    numbers = all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)
    return numbers and 0 <= share < 1 and 0 < size <= 1


Resolution = Annotated[list[list[float]], BeforeValidator(_resolution)]


class Views(Group):
    """The random views of an image (crop scales are set per stage)."""

    flip: Probability = Field(default=0.5, description="Probability of a horizontal flip")
    rotation: float = Field(default=0.0, ge=0, le=180, description="Largest rotation, degrees either way")
    jitter: Probability = Field(default=0.8, description="Probability of color changes")
    brightness: float = Field(default=0.4, ge=0, description="Largest relative change of brightness")
    contrast: float = Field(default=0.4, ge=0, description="Largest relative change of contrast")
    saturation: float = Field(default=0.4, ge=0, description="Largest relative change of saturation")
    hue: float = Field(default=0.1, ge=0, le=0.5, description="Largest shift of hue, share of the color circle")
    grayscale: Probability = Field(default=0.2, description="Probability of grayscale")
    resolution: Resolution = Field(
        default=[],
        description="Smaller views at first, to train in less time: from which share of optimizer.schedule_epochs on "
        "views have which share of the images' height and width; none: always all of it",
    )
