"""The group of params.yaml that says how trainings are executed: it changes their results by rounding at most."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from conr.parameters.groups import Group

MOST = 4096  # processes, or threads


def _number_or_auto(value: object) -> object:
    """What is written for a number of processes or threads, if it can be."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST):
        return value
    raise PydanticCustomError("number_or_auto", "auto or a number of at least 1")


NumberOrAuto = Annotated[int | str, BeforeValidator(_number_or_auto)]


class Training(Group):
    """How both training stages are executed."""

    graph: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: on a GPU views and networks are compiled, and a step is recorded as a CUDA graph and "
        "replayed, where that works; off: every operation is launched by itself",
    )
    processes: NumberOrAuto = Field(
        default="auto",
        description="Processes that share each batch, one per GPU; results are equal up to rounding. auto: as many "
        "GPUs as can share it equally, 1 on a CPU; under torchrun all of its processes",
        examples=["auto", "N"],
    )
    threads: NumberOrAuto = Field(
        default="auto",
        description="Threads on a CPU; results are equal up to rounding. auto: measures for half a second which number "
        "is fastest beside other work, and keeps to it when resumed; where OMP_NUM_THREADS is set, that",
        examples=["auto", "N"],
    )


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
