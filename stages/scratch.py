"""Scratch space for checkpoints: no artifact, so that DVC neither deletes it nor resumes from the wrong one."""

import os
from pathlib import Path

from conr.training.checkpoints import Checkpoint, fingerprint
from stages.paths import CHECKPOINTS


def scratch() -> Path:
    """The root of paths that DVC does not touch.

    DVC_ROOT is the real repository even when DVC runs an experiment in a temporary copy.
    """
    return Path(os.environ.get("DVC_ROOT", "."))


def checkpoint_of(stage: str, *parts: object) -> Checkpoint:
    """The checkpoint of a run, named by all it depends on."""
    return Checkpoint(scratch() / CHECKPOINTS / f"{stage}-{fingerprint(stage, *parts)}")
