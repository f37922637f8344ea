"""The same parameters and seed give the same bytes on a CPU, from the first image to the page."""

import csv
import json
from pathlib import Path
from typing import Any

from project import FINISHED, run_stages, tiny

from conr.pipeline.workspace import RECORD, Workspace


def content(root: Path, file: Path) -> Any:
    """What a file holds, without the workspace's own path and the seconds that training took."""
    if file.name == RECORD:
        record = json.loads(file.read_text())
        return {**record, "made": {name: hash for name, hash in record["made"].items() if not name.endswith("log.csv")}}
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8") as lines:
            return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(lines)]
    return file.read_bytes().replace(str(root).encode(), b"")


def test_two_runs_from_scratch_are_equal(finished: Workspace, tmp_path: Path, one_thread: None) -> None:
    again = Workspace.at(tmp_path)
    run_stages(again, tiny(FINISHED))
    found = [
        {
            path.relative_to(workspace.root).as_posix(): content(workspace.root, path)
            for folder in ("artifacts", "results")
            for path in sorted((workspace.root / folder).rglob("*"))
            if path.is_file()
        }
        for workspace in (finished, again)
    ]
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 20
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []
