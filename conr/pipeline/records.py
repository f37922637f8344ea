"""Records: what a stage made, and from what. Every reader compares, so that nothing damaged or foreign is used."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from conr.data.store import Manifest
from conr.errors import Note, UserError
from conr.files import load_json, sha256_of, write_json
from conr.parameters import STAGES, Parameters, Stage
from conr.parameters.keys import flat
from conr.pipeline.workspace import RECORD, Record, Workspace

ANYWHERE = (
    "device",
    "precision",
    "seeds",
    "training.processes",
    "training.threads",
)  # another one is no other run, or is refused
NO_OTHER_RUN = {"training": {"processes", "threads"}}  # the same of what a fingerprint would depend on
SHOWN = 8  # digits of a hash that a message shows


def write_record(
    folder: Path,
    files: Sequence[Path],
    seeds: list[int],
    made_from: Mapping[str, str],
    precision: str | None = None,
    parameters: Stage | None = None,
    clusters: int | None = None,
    method: str | None = None,
) -> None:
    """Say what was made, in a folder, and from what. It comes last: then all of it is there.

    Args:
        folder: where the record goes.
        files: what was made, in the folder.
        seeds: those that it was run with.
        made_from: name of an artifact → what identifies it.
        precision: number format of the encoder, where there is one.
        parameters: of the stage.
        clusters: K, once it is settled.
        method: of clustering, where there are clusters.
    """
    made = {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}
    write_json(
        folder / RECORD,
        Record(
            seeds=seeds,
            made=made,
            made_from=dict(made_from),
            precision=precision,
            clusters=clusters,
            method=method,
            parameters=None if parameters is None else flat(parameters),
        ),
    )


def read_record(folder: Path, remedy: str, made_from: Mapping[str, str] | None = None) -> Record:
    """The record of a folder whose files are what was written, and were made from what is there now.

    Args:
        folder: which holds the record.
        remedy: what to do where it does not.
        made_from: name → what identifies it now; what is not named is not compared.

    Raises:
        UserError: a file is missing or damaged, or was made from something else; both are named.
    """
    record = load_json(folder / RECORD, Record, remedy)
    for name, identity in (made_from or {}).items():
        before = record.made_from.get(name, "unknown")
        if before != identity:
            raise UserError(
                f"{folder} was made from another {name}: {before[:SHOWN]} then, {identity[:SHOWN]} now; {remedy}"
            )
    for name, written in record.made.items():
        file = folder / name
        if not file.is_file() or sha256_of(file) != written:
            raise UserError(f"{file} is missing or damaged (it is not what was written); {remedy}")
    return record


def note_other_parameters(workspace: Workspace, stage: str, parameters: Parameters) -> None:
    """Tell the user where stages before this one were run with other parameters than these, as flags make possible."""
    now, before = flat(parameters), list(STAGES)[: list(STAGES).index(stage)]
    for folder, name in ((workspace.pretrained.folder, "pretrain"), (workspace.refined, "finetune")):
        if name not in before or not (folder / RECORD).exists():
            continue
        then = load_json(folder / RECORD, Record, f"run conr {name} again").parameters or {}
        others = [
            f"{key} = {value} (now {now.get(key)})"
            for key, value in then.items()
            if key not in ANYWHERE and value != now.get(key)
        ]
        if others:
            message = f"{folder} was made with {', '.join(others)}; conr {name} makes it with the present values"
            warnings.warn(Note(message), stacklevel=2)


def of_embeddings(workspace: Workspace, manifest: Manifest, seed: int) -> dict[str, str]:
    """What embeddings are made from, as it is now: images, and networks before and after ConNR (those of a seed)."""
    return {
        "store": manifest.checksum,
        "pretrained": identity(workspace.pretrained.network),
        "finetuned": identity(workspace.finetuned(seed).weights),
    }


def identity(path: Path) -> str:
    """The SHA-256 of a file, or that it is missing: what was made from it is then of another one."""
    return sha256_of(path) if path.is_file() else "missing"
