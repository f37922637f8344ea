"""info: what a workspace holds, and whether it is what was written."""

from datetime import datetime
from pathlib import Path

from conr.data.store import MANIFEST, load_manifest, open_store
from conr.data.store import verify as verify_store
from conr.errors import UserError
from conr.files import load_json
from conr.pipeline.records import identity, read_record
from conr.pipeline.report import aligned
from conr.pipeline.workspace import RECORD, Record, Workspace


def info(workspace: Workspace, verify: bool) -> tuple[list[str], list[str]]:
    """A line for every artifact, and one for everything that is wrong.

    Args:
        workspace: which is only read.
        verify: whether to read all of it and compare it with the hashes that were taken when it was written.

    Returns:
        Lines of a table, and what is missing, damaged or made from something else.
    """
    rows, wrong = [], []
    if workspace.store.is_dir():
        try:
            store = open_store(workspace.store)
            manifest = store.manifest
            rows.append(["images", f"{manifest.count:,} of {manifest.source}", _age(workspace.store / MANIFEST)])
            if verify:
                verify_store(store, workspace.store)
        except UserError as error:
            wrong.append(str(error))
    folders = {
        "pretrained networks": (workspace.pretrained.folder, "pretrain"),
        "refined networks": (workspace.refined, "finetune"),
        "embeddings": (workspace.embedded, "extract"),
        "results": (workspace.results, "evaluate"),
    }
    for name, (folder, stage) in folders.items():
        if not (folder / RECORD).exists():
            continue
        remedy = f"run conr {stage} again"
        try:
            record = load_json(folder / RECORD, Record, remedy)
            rows.append([name, f"seeds {', '.join(map(str, record.seeds))}", _age(folder / RECORD)])
            if verify:
                read_record(folder, remedy, _sources(workspace, stage))
        except UserError as error:
            wrong.append(str(error))
    return aligned(rows) if rows else ["nothing yet; start with conr prepare, or dvc repro"], wrong


def _sources(workspace: Workspace, stage: str) -> dict[str, str]:
    """What the outputs of a stage should be made from."""
    found = {}
    if (workspace.store / MANIFEST).exists() and stage in ("pretrain", "finetune"):
        found["store"] = load_manifest(workspace.store).training_identity
    if stage in ("finetune", "extract"):
        found["pretrained"] = identity(workspace.pretrained.network)
    if stage in ("extract", "evaluate"):
        found["encoder"] = identity(workspace.encoder)
    return found


def _age(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime).astimezone().strftime("%Y-%m-%d %H:%M")
