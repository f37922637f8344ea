"""params.yaml, dvc.yaml, the presets, the workspace and the declarations say the same."""

from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from imports import ROOT, holds_code, imported_files, lies_in
from ruamel.yaml import YAML

from conr.parameters import STAGES as STAGE_PARAMETERS
from conr.parameters import Parameters
from conr.parameters.keys import leaves
from conr.parameters.stages import Device
from conr.pipeline import params_file
from conr.pipeline.presets import FOLDER, preset_file
from conr.pipeline.workspace import RECORD, Workspace
from conr.stages.cli import STAGES, assign
from conr.training.checkpoints import DEPENDENCIES

PIPELINE: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")
PRESETS = sorted(FOLDER.glob("*.yaml"))
DECLARATIONS = "conr/parameters"  # decide no value: DVC tracks the values themselves through params
PUBLIC_NAMES = "conr/__init__.py"  # loads nothing
# What a training needs and what its result does not depend on.
NO_INFLUENCE = (
    "conr/pipeline",
    DECLARATIONS,
    "conr/embedding",  # makes frozen features; what is trained on them names their hash
    "conr/errors.py",
    "conr/files.py",
    "conr/observer.py",
    "conr/processes.py",
    "conr/text.py",
)


@cache
def imported(stage: str) -> set[str]:
    """The files with code that a stage's command can load, but for the declarations of parameters."""
    files = imported_files(f"conr.stages.{stage}", without=[DECLARATIONS])
    return {file for file in files if file != PUBLIC_NAMES and holds_code(file)}


def code(stage: str) -> list[str]:
    """The files and folders of code that dvc.yaml names for a stage."""
    return [dep for dep in PIPELINE["stages"][stage]["deps"] if dep.startswith(("conr/", "stages/"))]


def test_pipeline_and_command_line_have_the_same_stages_in_the_same_order() -> None:
    assert list(PIPELINE["stages"]) == list(STAGES) == list(STAGE_PARAMETERS)
    assert all(stage["cmd"] == f"conr {name}" for name, stage in PIPELINE["stages"].items())


def test_the_pipeline_can_be_read_at_a_glance() -> None:
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) < 110


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_tracks_exactly_the_parameters_that_a_stage_reads(stage: str) -> None:
    assert sorted(PIPELINE["stages"][stage]["params"]) == sorted(STAGE_PARAMETERS[stage].model_fields)


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_tracks_all_code_that_a_stage_imports(stage: str) -> None:
    assert sorted(file for file in imported(stage) if not lies_in(file, code(stage))) == []


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_tracks_no_code_that_a_stage_does_not_import(stage: str) -> None:
    tracked = code(stage)
    assert len(tracked) == len(set(tracked))
    assert [dep for dep in tracked if not any(lies_in(file, [dep]) for file in imported(stage))] == []
    assert [dep for dep in tracked if lies_in(dep, set(tracked) - {dep})] == [], "part of a folder that is there"


def test_no_change_of_what_only_group_concordance_needs_runs_pretraining_again() -> None:
    assert not [dep for dep in code("pretrain") if dep.startswith(("conr/neighbors", "conr/refinement"))]
    assert not [file for file in imported("pretrain") if file.startswith(("conr/neighbors", "conr/refinement"))]
    assert {"conr/neighbors", "conr/refinement"} <= set(code("finetune"))


@pytest.mark.parametrize("module", ["pretrain", "finetune", "experiments"])
def test_a_fingerprint_covers_all_code_that_a_training_and_its_scores_import(module: str) -> None:
    files = imported_files(f"conr.pipeline.{module}", without=[DECLARATIONS])
    computing = {file for file in files if not lies_in(file, NO_INFLUENCE) and holds_code(file)} - {PUBLIC_NAMES}
    covered = [f"conr/{name}" for name in DEPENDENCIES]
    assert sorted(file for file in computing if not lies_in(file, covered)) == []


def test_a_fingerprint_covers_nothing_that_is_not_there_or_that_no_training_imports() -> None:
    files = set().union(*(imported_files(f"conr.pipeline.{name}") for name in ("pretrain", "finetune", "experiments")))
    for name in DEPENDENCIES:
        assert (ROOT / "conr" / name).exists()
        assert any(lies_in(file, [f"conr/{name}"]) for file in files), name


def outs(stage: dict[str, Any]) -> set[str]:
    return {*stage["outs"], *(name for metrics in stage.get("metrics", []) for name in metrics)}


def test_every_artifact_that_a_stage_depends_on_is_an_output_of_an_earlier_one() -> None:
    made: set[str] = set()
    for stage in PIPELINE["stages"].values():
        needed = {dep for dep in stage["deps"] if dep.startswith(("artifacts", "results"))}
        assert needed <= made
        made |= outs(stage)


def test_every_dependency_is_code_an_artifact_or_the_images() -> None:
    for stage in PIPELINE["stages"].values():
        for dep in stage["deps"]:
            assert dep.startswith(("artifacts/", "${prepare.path}")) or (ROOT / dep).exists(), dep


def test_workspace_and_pipeline_name_the_same_artifacts() -> None:
    here = Workspace()
    values = [getattr(here, name) for name in vars(Workspace) if not name.startswith("_")]
    paths = [value for value in values if isinstance(value, Path) and value not in (here.root, here.scratch)]
    paths += [here.embeddings(), here.embeddings(7), here.results / RECORD]
    paths += [files.weights.parent for files in (here.pretrained, here.finetuned(7))]
    known = {path.as_posix() for path in paths}
    beside = {path.as_posix() for path in (here.results, here.sweeps, here.ablation, here.experiments, here.locks)}
    beside |= {path.as_posix() for path in (here.proposals, here.names, here.packed_folder)}
    made = set().union(*(outs(stage) for stage in PIPELINE["stages"].values()))
    assert made <= known
    assert {path for path in known - beside if not lies_in(path, made)} == set()


def test_records_lie_in_outputs() -> None:
    here = Workspace()
    made = set().union(*(outs(stage) for stage in PIPELINE["stages"].values()))
    for folder in (here.refined, here.embedded, here.results):
        assert lies_in((folder / RECORD).as_posix(), made)


@pytest.mark.parametrize("preset", [ROOT / "params.yaml", *PRESETS], ids=lambda path: path.stem)
def test_presets_are_complete_and_valid(preset: Path) -> None:
    assert isinstance(params_file.read(preset), Parameters)


def test_params_file_is_the_digits_preset() -> None:
    assert (ROOT / "params.yaml").read_text() == preset_file("digits").read_text()


def test_every_parameter_is_explained_and_has_a_flag_of_its_own_in_each_stage() -> None:
    for stage in STAGE_PARAMETERS.values():
        flags = [key[-2] if key[-1] == "name" else key[-1] for key, _ in leaves(stage)]
        assert len(flags) == len(set(flags))
    assert all(field.description for _, field in leaves(Parameters))


def test_no_two_stages_can_disagree_on_a_declaration() -> None:
    for stage in STAGE_PARAMETERS.values():
        for name, field in stage.model_fields.items():
            declared = Parameters.model_fields[name]
            assert (field.annotation, field.metadata, field.default) == (
                declared.annotation,
                declared.metadata,
                declared.default,
            )
    assert set(Parameters.model_fields) == {name for stage in STAGE_PARAMETERS.values() for name in stage.model_fields}


def test_assign_takes_the_devices_that_are_declared() -> None:
    assert get_type_hints(assign)["device"] == get_args(Device)[0]
