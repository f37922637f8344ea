"""info: what the stages have left in a workspace, and whether it is what was written."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from conr.data.store import MANIFEST, load_manifest, open_store
from conr.data.store import verify as verify_store
from conr.errors import UserError
from conr.files import load_json
from conr.pipeline.records import identity, read_record
from conr.pipeline.workspace import RECORD, Record, Workspace
from conr.text import counted

COMPLETE, INCOMPLETE, DAMAGED, NOTHING = "complete", "incomplete", "damaged", "not run"


@dataclass(frozen=True)
class Left:
    """What a stage has left.

    Attributes:
        stage: its name.
        state: complete, incomplete (files without the record that comes last), damaged or not run.
        written: when, in local time; empty where the state is another than complete.
        holds: what it made, and what is saved of a training that was stopped.
    """

    stage: str
    state: str
    written: str
    holds: str


def info(workspace: Workspace, verify: bool) -> tuple[list[Left], list[str]]:
    """Every stage in order, and everything that is wrong.

    Args:
        workspace: which is only read.
        verify: whether to read all of it and compare it with the hashes that were taken when it was written.

    Returns:
        What each stage has left; and what is missing, damaged or made from something else.
    """
    wrong: list[str] = []
    folders = {
        "pretrain": workspace.pretrained.folder,
        "finetune": workspace.refined,
        "extract": workspace.embedded,
        "evaluate": workspace.results,
    }
    left = [_store(workspace, verify, wrong)]
    left += [_stage(workspace, name, folder, verify, wrong) for name, folder in folders.items()]
    return left, wrong


def _store(workspace: Workspace, verify: bool, wrong: list[str]) -> Left:
    """The packed images."""
    state, written, holds = NOTHING, "", ""
    try:
        if workspace.store.is_dir():
            store = open_store(workspace.store)
            written = _written(workspace.store / MANIFEST)
            state, holds = COMPLETE, f"{store.manifest.count:,} images of {store.manifest.source}"
            holds += f" in {counted(store.manifest.shards, 'shard')}" if store.manifest.shards else ""
            if verify:
                verify_store(store, workspace.store)
    except (UserError, OSError) as error:
        state = DAMAGED
        wrong.append(str(error))
    return Left("prepare", state, written, holds)


def _stage(workspace: Workspace, name: str, folder: Path, verify: bool, wrong: list[str]) -> Left:
    """A stage with a record."""
    state, written, holds = NOTHING, "", []
    remedy = f"run conr {name} again"
    try:
        if (folder / RECORD).exists():
            record = load_json(folder / RECORD, Record, remedy)
            state, written = COMPLETE, _written(folder / RECORD)
            holds.append(f"seeds {', '.join(map(str, record.seeds))}")
            if verify:
                read_record(folder, remedy, _sources(workspace, name))
        elif folder.is_dir() and any(path != workspace.metrics for path in folder.iterdir()):  # git has the metrics
            state = INCOMPLETE
        saved = [path.stat().st_mtime for path in workspace.checkpoint("").glob(f"{name}-*/*")]
        if saved:
            holds.append(f"an unfinished training, saved {_local(max(saved))}")
    except (UserError, OSError) as error:
        state = DAMAGED
        wrong.append(str(error))
    return Left(name, state, written, "; ".join(holds))


def _sources(workspace: Workspace, stage: str) -> dict[str, str]:
    """What the outputs of a stage should be made from."""
    found = {}
    if (workspace.store / MANIFEST).exists() and stage in ("pretrain", "finetune"):
        with suppress(UserError):  # a damaged store is named for itself
            found["store"] = load_manifest(workspace.store).training_identity
    if stage in ("finetune", "extract"):
        found["pretrained"] = identity(workspace.pretrained.network)
    if stage in ("extract", "evaluate"):
        found["encoder"] = identity(workspace.encoder)
    return found


def _written(path: Path) -> str:
    return _local(path.stat().st_mtime)


def _local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
