"""The presets hold the numbers they promise, and `conr preset` loses nothing."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import ROOT, Conr, copy_tree, run, run_conr

from conr.parameters import Parameters, ParamsFile
from stages import params_file
from stages.cli import STAGES

FILES = {path.stem: path for path in sorted((ROOT / "presets").glob("*.yaml"))}
VALUES: dict[str, dict[str, Any]] = {
    name: {".".join(key): params_file.lookup(params_file.read(path), key) for key, _ in params_file.leaves(ParamsFile)}
    for name, path in FILES.items()
}
ORDER = "seed seeds device precision clusters k k1 k2 fr prepare network host neighbourhood boundary views optimiser"
ORDER += " pretrain finetune extract evaluate"

# What a data set changes in the paper's recipe for CIFAR-10 (Sec. 4.1 and 4.2).
RESNET34 = {"network.architecture": "resnet34", "network.stem": "imagenet"}
BY_HAND = {"prepare.download": False}
DATA_SETS: dict[str, dict[str, Any]] = {
    "cifar10": {},
    "cifar20": {"clusters": 20, "pretrain.prototypes": 20},
    "stl10": RESNET34 | {"prepare.image_size": 96},
    "imagenet10": RESNET34 | BY_HAND | {"prepare.image_size": 96},
    "imagenet-dogs": RESNET34
    | BY_HAND
    | {"prepare.image_size": 224, "clusters": 15, "pretrain.prototypes": 15, "k": 20, "k1": 30, "k2": 10},
    "tiny-imagenet": RESNET34 | BY_HAND | {"prepare.image_size": 64, "clusters": 200, "pretrain.prototypes": 200},
}
RELEASED: dict[str, Any] = {
    "network.bn_group": 128,
    "boundary.relaxation": 0.25,
    "pretrain.batch_size": 512,
    "finetune.batch_size": 512,
    "finetune.divisor": "batch",
}


def differences(name: str, other: str) -> dict[str, Any]:
    """The values of a preset that differ from those of another."""
    return {key: value for key, value in VALUES[name].items() if value != VALUES[other][key]}


def test_there_is_a_preset_for_everything_that_is_promised() -> None:
    assert set(FILES) == {"digits", "folder", "released-code", "cifar10-200", *DATA_SETS}


@pytest.mark.parametrize("name", FILES)
def test_keys_are_in_the_order_of_the_declarations(name: str) -> None:
    content = params_file.read(FILES[name])
    assert list(content) == ORDER.split()
    for group, field in ParamsFile.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Parameters):
            assert list(content[group]) == list(field.annotation.model_fields)


@pytest.mark.parametrize("name", FILES)
def test_comments_say_what_it_is_for(name: str) -> None:
    lines = FILES[name].read_text().splitlines()
    comments = [line for line in lines[:4] if line.startswith("# ")]
    assert lines[: len(comments)] == comments
    assert len(comments) in (2, 3)
    assert name in ("digits", "folder") or any("not run here" in line for line in comments)


def test_cifar10_is_what_is_declared() -> None:
    declared = {".".join(key): field.default for key, field in params_file.leaves(ParamsFile)}
    changed = {key: value for key, value in VALUES["cifar10"].items() if value != declared[key]}
    assert changed == {"prepare.source": "cifar10", "prepare.download": True, "prepare.labels": "dataset"}


def test_cifar10_is_the_paper_s_recipe() -> None:
    expected: dict[str, Any] = {
        "clusters": 10,
        "k": 10,
        "k1": 10,
        "k2": 2,
        "fr": 0.8,
        "prepare.protocol": "all",
        "prepare.image_size": 32,
        "network.architecture": "resnet18",
        "network.width": 64,
        "network.stem": "cifar",
        "network.hidden": 4096,
        "network.dimension": 256,
        "network.bn_group": 0,
        "host.framework": "byol",
        "neighbourhood.neighbours": "conaff",
        "boundary.filter": "relaxed",
        "boundary.relaxation": 1.0,
        "optimiser.base_learning_rate": 0.05,
        "optimiser.warmup_epochs": 50,
        "optimiser.schedule_epochs": 1000,
        "optimiser.target_momentum": 0.996,
        "optimiser.target_schedule": "cosine",
        "pretrain.epochs": 800,
        "pretrain.batch_size": 256,
        "pretrain.crop_scale": 0.08,
        "pretrain.predictor_rate": 10.0,
        "finetune.epochs": 200,
        "finetune.batch_size": 256,
        "finetune.crop_scale": 0.45,
        "finetune.rate": 0.1,
        "finetune.predictor_rate": 0.1,
        "finetune.divisor": "candidates",
    }
    assert {key: VALUES["cifar10"][key] for key in expected} == expected


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_data_set_changes_the_paper_s_recipe_only_where_the_paper_does(name: str) -> None:
    assert VALUES[name]["prepare.source"] == name
    assert {**differences(name, "cifar10"), "prepare.source": name} == {**DATA_SETS[name], "prepare.source": name}


def test_the_released_code_differs_from_the_paper_in_these_values_only() -> None:
    assert differences("released-code", "cifar10") == RELEASED


def test_the_short_recipe_divides_all_that_is_counted_in_epochs_by_five() -> None:
    long, short = VALUES["cifar10"], VALUES["cifar10-200"]
    counted = {key for key in long if key.endswith("epochs")}
    assert counted == {"pretrain.epochs", "finetune.epochs", "optimiser.warmup_epochs", "optimiser.schedule_epochs"}
    momentum = "optimiser.target_momentum"
    assert set(differences("cifar10-200", "cifar10")) == {*counted, momentum}
    assert all(5 * short[key] == long[key] for key in counted)
    assert 1 - short[momentum] == pytest.approx(5 * (1 - long[momentum]))


@pytest.mark.parametrize("name", [*DATA_SETS, "cifar10-200", "digits", "folder"])
def test_what_the_paper_does_not_have_is_off(name: str) -> None:
    values = VALUES[name]
    extras = ("pretrain.scattering", "pretrain.noise", "finetune.instance", "finetune.scattering", "finetune.boost")
    assert [values[key] for key in extras] == [0.0] * len(extras)
    assert (values["seeds"], values["prepare.imbalance"], values["network.bn_group"]) == ([], 1.0, 0)


def test_without_a_name_all_are_listed_with_their_first_comment(conr: Conr) -> None:
    result = conr("preset")
    assert result.returncode == 0, result.stderr
    shown = dict(line.split(maxsplit=1) for line in result.stdout.split("\n\n")[0].splitlines())
    assert shown == {name: path.read_text().splitlines()[0][2:] for name, path in FILES.items()}


def test_a_preset_is_written_and_every_change_is_printed(tmp_path: Path) -> None:
    shutil.copy(FILES["cifar10"], tmp_path / "params.yaml")
    result = run_conr(tmp_path, "preset", "imagenet-dogs")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "params.yaml").read_bytes() == FILES["imagenet-dogs"].read_bytes()
    *changes, last = result.stdout.splitlines()
    assert set(changes) == {
        "clusters: 10 → 15",
        "k: 10 → 20",
        "k1: 10 → 30",
        "k2: 2 → 10",
        "prepare.source: cifar10 → imagenet-dogs",
        "prepare.download: true → false",
        "prepare.image_size: 32 → 224",
        "network.architecture: resnet18 → resnet34",
        "network.stem: cifar → imagenet",
        "pretrain.prototypes: 10 → 15",
    }
    assert "set prepare.root" in last
    assert "dvc repro" in last
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"], "a preset need not be kept"
    assert "No value changed" in run_conr(tmp_path, "preset", "imagenet-dogs").stdout


@pytest.mark.parametrize("name", FILES)
def test_it_says_what_to_do_next(name: str, tmp_path: Path) -> None:
    result = run_conr(tmp_path, "preset", name)
    assert result.returncode == 0, result.stderr
    first, last = result.stdout.splitlines()
    assert first == "There was no params.yaml; it was written anew."
    assert last.startswith(f"params.yaml is now the preset {name}. Next: ")
    assert "dvc repro" in last
    assert ("prepare.path" in last) == (name == "folder")
    assert ("prepare.root" in last) == (name not in ("digits", "folder"))
    assert ("downloads" in last) == VALUES[name]["prepare.download"]


def test_a_file_that_is_no_preset_is_kept(project: Path, conr: Conr) -> None:
    former = (project / "params.yaml").read_bytes()
    result = conr("preset", "digits")
    assert "device: cpu → auto" in result.stdout
    assert "kept as params.yaml.bak." in result.stdout
    assert (project / "params.yaml.bak").read_bytes() == former

    (project / "params.yaml").write_bytes(former + b"# a second one\n")
    assert "kept as params.yaml.bak2." in conr("preset", "digits").stdout
    assert (project / "params.yaml.bak").read_bytes() == former

    (project / "params.yaml").write_bytes(former)
    assert "kept as params.yaml.bak." in conr("preset", "digits").stdout
    assert sorted(path.name for path in project.iterdir()) == ["params.yaml", "params.yaml.bak", "params.yaml.bak2"]


@pytest.mark.parametrize(
    ("former", "reason"),
    [(b"k: [1,", "is not valid YAML"), (b"seed: 0\n", "lacks the key"), (b"seed: \xff\n", "could not be compared")],
    ids=["no YAML", "incomplete", "no UTF-8"],
)
def test_a_file_that_cannot_be_read_is_kept_and_written_anew(tmp_path: Path, former: bytes, reason: str) -> None:
    (tmp_path / "params.yaml").write_bytes(former)
    result = run_conr(tmp_path, "preset", "stl10")
    assert result.returncode == 0, result.stderr
    assert reason in result.stdout
    assert "it was written anew" in result.stdout
    assert (tmp_path / "params.yaml.bak").read_bytes() == former
    assert (tmp_path / "params.yaml").read_bytes() == FILES["stl10"].read_bytes()


def test_an_unknown_preset_is_refused_with_the_nearest_and_all(project: Path, conr: Conr) -> None:
    former = (project / "params.yaml").read_bytes()
    result = conr("preset", "cifar-10")
    assert result.returncode == 2
    assert "there is no preset cifar-10; did you mean cifar10?" in result.stderr
    assert all(name in result.stderr for name in FILES)
    assert (project / "params.yaml").read_bytes() == former


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this working tree's files, nothing run in it.

    Outputs are empty: `dvc repro --dry` wants those of earlier stages to be there, and makes none.
    """
    folder = tmp_path_factory.mktemp("clone") / "conr"
    copy_tree(folder)
    for stage in yaml.safe_load((folder / "dvc.yaml").read_text())["stages"].values():
        for out in map(folder.joinpath, stage["outs"]):
            out.parent.mkdir(parents=True, exist_ok=True)
            out.touch() if out.suffix else out.mkdir()
    run(folder, "git", "init", "--quiet")
    return folder


@pytest.mark.parametrize("name", FILES)
def test_dvc_plans_all_stages_of_every_preset(repository: Path, name: str) -> None:
    run(repository, "conr", "preset", name)
    assert re.findall(r"Running stage '(\w+)'", run(repository, "dvc", "repro", "--dry")) == list(STAGES)
