"""params.yaml, dvc.yaml, the presets and the declarations say the same."""

from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from imports import ROOT, imported_files

from conr.parameters import Device, ParamsFile
from conr.training.checkpoints import NO_INFLUENCE
from stages import params_file, paths
from stages.cli import STAGES, assign
from stages.flags import VIEWS

PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
# Declarations decide no value: DVC tracks the values themselves through params.
NOT_A_DEPENDENCY = {"conr/parameters.py"}


def test_pipeline_and_command_line_have_the_same_stages_in_the_same_order() -> None:
    assert list(PIPELINE["stages"]) == list(STAGES) == list(VIEWS)
    assert all(stage["cmd"] == f"conr {name}" for name, stage in PIPELINE["stages"].items())


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_tracks_exactly_the_parameters_that_a_stage_reads(stage: str) -> None:
    assert sorted(PIPELINE["stages"][stage]["params"]) == sorted(VIEWS[stage].model_fields)


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_tracks_exactly_the_code_that_a_stage_imports(stage: str) -> None:
    imported = {file for file in imported_files(f"stages.{stage}") if not file.endswith("__init__.py")}
    tracked = {dep for dep in PIPELINE["stages"][stage]["deps"] if dep.endswith(".py")}
    for folder in {"conr/hosts"}.intersection(PIPELINE["stages"][stage]["deps"]):
        tracked |= {f"{folder}/{file.name}" for file in (ROOT / folder).glob("[!_]*.py")}
    assert tracked == imported - NOT_A_DEPENDENCY


@pytest.mark.parametrize("module", ["pretrain", "finetune", "experiments"])
def test_a_fingerprint_leaves_out_no_code_that_a_training_imports(module: str) -> None:
    assert all((ROOT / "conr" / name).exists() for name in NO_INFLUENCE)
    left_out = tuple(f"conr/{name}" for name in NO_INFLUENCE)
    assert [file for file in imported_files(f"stages.{module}") if file.startswith(left_out)] == []


def test_every_artifact_that_a_stage_depends_on_is_an_output_of_an_earlier_one() -> None:
    made: set[str] = set()
    for stage in PIPELINE["stages"].values():
        needed = {dep for dep in stage["deps"] if dep.startswith(("artifacts", "results"))}
        assert needed <= made
        made |= {out for out in stage["outs"] if isinstance(out, str)}


def test_paths_and_pipeline_name_the_same_artifacts() -> None:
    outs = {out for stage in PIPELINE["stages"].values() for out in stage["outs"]}
    outs |= set(PIPELINE["stages"]["evaluate"]["metrics"][0])
    known = {value.as_posix() for value in vars(paths).values() if isinstance(value, Path)}
    beside = (paths.CHECKPOINTS, paths.EXPERIMENTS, paths.TRIALS, paths.ABLATION, paths.SWEEPS)
    known -= {path.as_posix() for path in beside}
    inside = {path for path in known if any(path.startswith(f"{out}/") for out in outs)}
    assert known - inside == outs - {"artifacts/embeddings"}
    embeddings = {paths.EMBEDDINGS, paths.PRETRAINED_EMBEDDINGS, paths.FURTHER_EMBEDDINGS, paths.EMBEDDED}
    assert inside == {path.as_posix() for path in embeddings | {paths.SEEDS}}


@pytest.mark.parametrize("preset", [ROOT / "params.yaml", *PRESETS], ids=lambda path: path.name)
def test_presets_are_complete_and_valid(preset: Path) -> None:
    content = params_file.read(preset)
    params = params_file.validated(content)
    params_file.check_together(params)


def test_params_file_is_the_digits_preset() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "presets/digits.yaml").read_text()


def test_every_parameter_is_explained_and_has_a_flag_of_its_own_in_each_stage() -> None:
    for view in VIEWS.values():
        flags = [key[-1] for key, _ in params_file.leaves(view)]
        assert len(flags) == len(set(flags))
    assert all(field.description for _, field in params_file.leaves(ParamsFile))


def test_no_two_stages_can_disagree_on_a_declaration() -> None:
    for view in VIEWS.values():
        for name, field in view.model_fields.items():
            declared = ParamsFile.model_fields[name]
            assert (field.annotation, field.metadata, field.default) == (
                declared.annotation,
                declared.metadata,
                declared.default,
            )


def test_assign_takes_the_devices_that_are_declared() -> None:
    assert get_type_hints(assign)["device"] == get_args(Device)[0]
