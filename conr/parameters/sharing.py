"""How many processes share each batch of a training."""

from typing import Annotated

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

MOST = 4096  # processes


def _number_or_auto(value: object) -> object:
    """What is written for a number of processes, if it can be."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST):
        return value
    raise PydanticCustomError("processes", "auto or a number of at least 1")


Processes = Annotated[int | str, BeforeValidator(_number_or_auto)]


def sharing(batch_size: int, group: int) -> list[int]:
    """The numbers of processes that can share a batch equally, so that no group of samples is divided.

    Args:
        batch_size: of all processes.
        group: samples that share batch-norm statistics; 0 for the whole batch, by messages between the processes.
    """
    return [number for number in range(1, batch_size + 1) if number == 1 or batch_size % (number * max(group, 1)) == 0]


def cannot_share(processes: int, stage: str, batch_size: int, group: int) -> str | None:
    """Why so many processes cannot share the batches of a stage, or None if they can."""
    possible = sharing(batch_size, group)
    if processes in possible:
        return None
    groups = f" in groups of network.bn_group = {group}" if group else ""
    return (
        f"training.processes = {processes} cannot share {stage}.batch_size = {batch_size} equally{groups}; use auto, "
        f"or one of {', '.join(map(str, possible))}"
    )
