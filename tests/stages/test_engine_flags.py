"""The flags of engines reach the commands, and `conr cluster` hands its engine to the stages that DVC runs."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conr.embedding.engines.settings import LOCAL, Engine
from conr.stages import cli
from conr.stages.engines import engine_variables


@pytest.fixture
def called(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What commands are called with, in the folder of a project."""
    calls: list[Any] = []
    monkeypatch.chdir(project)
    monkeypatch.setattr(cli, "run", lambda name, *arguments: calls.append((name, arguments[-1])))
    return calls


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["extract"], LOCAL),
        (["extract", "--shard", "2/3"], Engine(shard="2/3")),
        (["pretrain", "--engine", "ray"], Engine("ray")),
        (["assign", ".", "--engine", "ray", "--address", "auto", "--shard", "merge"], Engine("ray", "auto", "merge")),
        (["cluster", ".", "--engine", "ray"], Engine("ray")),
        (["ablate", "--engine", "ray", "--address", "10.0.0.1:6379"], Engine("ray", "10.0.0.1:6379")),
    ],
)
def test_flags_make_an_engine(called: list[Any], arguments: list[str], expected: Engine) -> None:
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert called == [(arguments[0], expected)]


@pytest.mark.parametrize("command", [["pretrain"], ["extract"], ["assign", "."]])
def test_stages_take_the_engine_that_a_cluster_command_names(
    called: list[Any], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = engine_variables(Engine("ray", "10.0.0.1:6379"))
    assert variables == {"CONR_ENGINE": "ray", "RAY_ADDRESS": "10.0.0.1:6379"}
    monkeypatch.setenv("CONR_ENGINE", variables["CONR_ENGINE"])
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    assert called == [(command[0], Engine("ray"))]


def test_a_stage_that_embeds_nothing_has_no_engine(called: list[Any]) -> None:
    assert CliRunner().invoke(cli.app, ["finetune", "--engine", "ray"]).exit_code == 2
    assert called == []
