"""Ray, imported and started where somebody asks for it: on this machine, or connected to a cluster.

A Ray of conr's own reports nothing to its makers, is protected by a token, and ends with the work.
"""

import importlib
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from conr.errors import UserError, one_line
from conr.processes import cores

# Nothing is reported to Ray's makers, and errors reach the user as exceptions only.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
CONNECTING = 10.0  # seconds


def cluster_address(asked: str | None) -> str | None:
    """The address that was asked for, or that in the variable RAY_ADDRESS; None for a Ray of its own here."""
    return asked or os.environ.get("RAY_ADDRESS")


@contextmanager
def connected(address: str | None, *parts: str) -> Iterator[Any]:
    """Ray, connected to a cluster or started here; it ends with the block, but for a cluster or who had it before.

    Args:
        address: of a cluster; None for a Ray of its own on this machine.
        parts: of Ray that are imported, too, such as "ray.data".

    Raises:
        UserError: Ray is not installed, does not start, or there is no cluster at the address.
    """
    if "ray" not in sys.modules:  # it reads the variables when it is imported
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        if address is None and "RAY_AUTH_MODE" not in os.environ:  # else it would write a token into the home folder
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        ray, *_ = map(importlib.import_module, ("ray", *parts))
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install 'conr[ray]'") from error
    had = ray.is_initialized()
    try:
        if not had:
            handler = signal.getsignal(signal.SIGTERM)
            with _no_stderr():
                _start(ray, address)
            with suppress(ValueError):  # only the main thread has handlers, and only there Ray has replaced it
                signal.signal(signal.SIGTERM, handler)
        yield ray
    finally:
        if not had:
            ray.shutdown()


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Let nothing be written to standard error: Ray's compiled code writes there that it was told to be quiet."""
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def _start(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        try:
            ray.init(address="local", num_cpus=cores(), include_dashboard=False, **quiet)
        except Exception as error:  # Ray raises errors of no class of its own, such as that a node timed out
            raise UserError(
                f"Ray did not start on this machine ({one_line(error)}); run the same command when it is less busy, or "
                "use --engine local"
            ) from error
        return
    try:
        _check_listens(address)
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--address {address}: no Ray cluster there ({one_line(error)}); start one with ray start --head, or leave "
            "it out to use this machine"
        ) from error


def _check_listens(address: str) -> None:
    """Refuse a host and a port where nobody listens, which Ray would try for two minutes.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.partition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), CONNECTING).close()
