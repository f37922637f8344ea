"""A record of what a stage made that is damaged is one line. What records say is in tests/field/test_origins.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
from project import SEEDS, tiny

from conr.errors import UserError
from conr.parameters import EvaluateStage, ExtractStage
from conr.pipeline.assign import open_encoder
from conr.pipeline.evaluate import evaluate
from conr.pipeline.extract import extract
from conr.pipeline.workspace import RECORD, Workspace

READERS: dict[str, tuple[str, Callable[[Workspace], object], str]] = {
    "extract": (
        "artifacts/finetune",
        lambda workspace: extract(workspace, ExtractStage.of(tiny())),
        "run conr finetune again",
    ),
    "evaluate": (
        "artifacts/embeddings",
        lambda workspace: evaluate(workspace, EvaluateStage.of(tiny({"seeds": SEEDS}))),
        "run conr extract again",
    ),
    "assign": ("results", lambda workspace: open_encoder(workspace, "cpu"), "run conr evaluate, or dvc repro"),
}
DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "empty": lambda path: path.touch(),
    "an object without keys": lambda path: path.write_text("{}"),
    "a list": lambda path: path.write_text("[]"),
    "torn": lambda path: path.write_text('{"seeds": [4, 3], "made_fr'),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "of a later version": lambda path: path.write_text('{"seeds": [4, 3], "made": {}, "made_from": {}, "more": 1}'),
    "other types": lambda path: path.write_text('{"seeds": "all", "made_from": {"encoder": 1}}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_record_is_one_line_that_says_what_to_run(
    finished: Workspace, workspace: Workspace, reader: str, damage: str
) -> None:
    folder, read, remedy = READERS[reader]
    names = ["artifacts/store", "artifacts/pretrain", "artifacts/finetune", "artifacts/embeddings", "results"]
    workspace.borrow(finished, *(name for name in names if name != folder), "artifacts/encoder.onnx")
    own = workspace.root / folder
    own.mkdir(parents=True)
    for path in (finished.root / folder).iterdir():
        if path.name != RECORD:
            (own / path.name).symlink_to(path)
    DAMAGES[damage](own / RECORD)
    with pytest.raises(UserError) as error:
        read(workspace)
    said = str(error.value)
    assert said.startswith(f"{own / RECORD} is missing or damaged (")
    assert said.endswith(f"; {remedy}")
    assert "\n" not in said
    assert "pydantic" not in said
