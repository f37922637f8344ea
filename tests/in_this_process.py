"""A stand-in for a pool of processes: what is asked for is done at once, in this process."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class InThisProcess:
    def __init__(self, count: int, kill_on_error: bool) -> None:
        pass

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        future: Future[None] = Future()
        try:
            function(*arguments)
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)
        return future
