"""Files of a training run: the state to resume from, and the weights that leave the stage.

A checkpoint is written to a temporary name, synced and renamed, so that a kill at any moment leaves the last whole
one. Its folder is named by a fingerprint of everything the run depends on: changed parameters never resume.
"""

import hashlib
import io
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

import conr
from conr.errors import UserError
from conr.files import atomic_file
from conr.networks import Siamese
from conr.training.model import build

SAVING = 0.02  # of the time of a training may go into saving its state
NO_INFLUENCE = ("report/", "export.py", "neighbour_study.py", "quantisation.py")  # on a training and its scores


def fingerprint(*parts: object) -> str:
    """A short name for a run: a hash of its JSON-like parts (parameters, checksums) and of conr's own source code.

    The source counts because a run that is resumed with changed code would be neither the old run nor the new one; but
    not what a training cannot notice.
    """
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    root = Path(conr.__file__).parent
    for file in sorted(root.rglob("*.py")):
        if not file.relative_to(root).as_posix().startswith(NO_INFLUENCE):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class Checkpoint:
    """The one resumable state of a run, in a folder of its own.

    Args:
        folder: where the state is kept; created when first saved to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "state.pt"
        self._due = 0.0

    @property
    def due(self) -> bool:
        """Whether so much was done since the last save that another one costs little: `SAVING` of the time.

        With long epochs that is after each; on a fast GPU an epoch may take no longer than saving its result.
        """
        return time.monotonic() >= self._due

    @property
    def epochs(self) -> int:
        """After how many epochs the state was saved; the rest of it is not read."""
        if not self.file.exists():
            return 0
        return len(torch.load(self.file, map_location="cpu", weights_only=True, mmap=True)["history"])

    def load(self) -> dict[str, Any] | None:
        """The last saved state on the CPU, or None if there is none."""
        if not self.file.exists():
            return None
        state: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the saved state. The old one stays whole until the new one is on the disk."""
        started = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Through memory: PyTorch's own writer turns a full disk into an error that cannot be told from others.
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        with atomic_file(self.file) as temporary:
            temporary.write_bytes(buffer.getbuffer())
        finished = time.monotonic()
        self._due = finished + (finished - started) / SAVING

    def remove(self) -> None:
        """Delete the state of a run that has finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def save_weights(path: Path, model: Siamese, description: Mapping[str, object]) -> None:
    """Write all weights of both networks and the predictor, with the description that rebuilds them.

    Args:
        path: the .safetensors file.
        model: the networks.
        description: what `conr.training.model.build` makes them from.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_file(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata={"network": json.dumps(description)}))


def load_weights(path: Path) -> tuple[Siamese, dict[str, Any]]:
    """Rebuild the networks that `save_weights` wrote.

    Returns:
        The model on the CPU, and the description of its network.

    Raises:
        UserError: the file is missing, damaged or not one of ours.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; run the stage before this one first (dvc repro runs all in order)")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            description: dict[str, Any] = json.loads(file.metadata()["network"])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = build(description)
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a whole conr weights file ({error}); delete it and rerun its stage") from error
    return model, description
