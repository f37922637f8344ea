"""The presets hold the numbers they promise, and `conr preset` loses nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from forked import run_conr
from project import copy_tree, refused, run
from ruamel.yaml import YAML

from conr.errors import UserError
from conr.parameters import Parameters
from conr.parameters.keys import leaves, lookup
from conr.pipeline.presets import FOLDER, listing, load_preset, preset_file, write
from conr.stages.cli import STAGES

FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
CONTENTS = {name: load_preset(name).model_dump() for name in FILES}
VALUES: dict[str, dict[str, Any]] = {
    name: {".".join(key): lookup(content, key) for key, _ in leaves(Parameters)} for name, content in CONTENTS.items()
}
ORDER = "seed seeds device precision clusters k k1 k2 fr prepare network framework neighborhood boundary views"
ORDER += " optimizer training pretrain finetune extract evaluate"

FOLDERS = ("folder", "folder-scratch")

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
    assert set(FILES) == {"digits", "folder", "folder-scratch", "released-code", "cifar10-200", *DATA_SETS}


@pytest.mark.parametrize("name", FILES)
def test_keys_are_in_the_order_of_the_declarations(name: str) -> None:
    content: Mapping[str, Any] = YAML(typ="safe").load(FILES[name])
    assert list(content) == ORDER.split()
    for group, field in Parameters.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Parameters):
            assert list(content[group]) == list(field.annotation.model_fields)


@pytest.mark.parametrize("name", FILES)
def test_comments_say_what_it_is_for(name: str) -> None:
    lines = FILES[name].read_text().splitlines()
    comments = [line for line in lines[:4] if line.startswith("# ")]
    assert lines[: len(comments)] == comments
    assert len(comments) in (2, 3)
    assert name in ("digits", *FOLDERS) or any("not run here" in line for line in comments)


def test_cifar10_is_what_is_declared() -> None:
    declared = {".".join(key): field.default for key, field in leaves(Parameters)}
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
        "framework.name": "byol",
        "neighborhood.neighbors": "conaff",
        "boundary.filter": "relaxed",
        "boundary.relaxation": 1.0,
        "optimizer.base_learning_rate": 0.05,
        "optimizer.warmup_epochs": 50,
        "optimizer.schedule_epochs": 1000,
        "optimizer.target_momentum": 0.996,
        "optimizer.target_schedule": "cosine",
        "pretrain.epochs": 800,
        "pretrain.batch_size": 256,
        "pretrain.crop_scale": 0.08,
        "pretrain.predictor_lr_scale": 10.0,
        "finetune.epochs": 200,
        "finetune.batch_size": 256,
        "finetune.crop_scale": 0.45,
        "finetune.lr_scale": 0.1,
        "finetune.predictor_lr_scale": 0.1,
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
    assert counted == {"pretrain.epochs", "finetune.epochs", "optimizer.warmup_epochs", "optimizer.schedule_epochs"}
    momentum = "optimizer.target_momentum"
    assert set(differences("cifar10-200", "cifar10")) == {*counted, momentum}
    assert all(5 * short[key] == long[key] for key in counted)
    assert 1 - short[momentum] == pytest.approx(5 * (1 - long[momentum]))


@pytest.mark.parametrize("name", [*DATA_SETS, "cifar10-200", "digits", "folder"])
def test_what_the_paper_does_not_have_is_off(name: str) -> None:
    values = VALUES[name]
    extras = ("pretrain.scattering", "pretrain.noise_std", "finetune.instance", "finetune.scattering", "finetune.boost")
    assert [values[key] for key in extras] == [0.0] * len(extras)
    assert (values["seeds"], values["prepare.imbalance"], values["network.bn_group"]) == ([], 1.0, 0)


def test_an_unknown_preset_is_refused_with_the_nearest_and_all() -> None:
    for load in (load_preset, preset_file):
        with pytest.raises(UserError, match=r"^there is no preset cifar-10; did you mean cifar10\?") as error:
            load("cifar-10")
        assert all(name in str(error.value) for name in FILES)


def test_all_are_listed_with_their_first_comment() -> None:
    shown = dict(line.split(maxsplit=1) for line in listing().split("\n\n")[0].splitlines())
    assert shown == {name: path.read_text().splitlines()[0][2:] for name, path in FILES.items()}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The params.yaml of a project, which is not there yet."""
    (tmp_path / "dvc.yaml").touch()
    return tmp_path / "params.yaml"


def test_a_preset_is_written_and_every_change_is_named(target: Path) -> None:
    target.write_bytes(FILES["cifar10"].read_bytes())
    *changes, last = write("imagenet-dogs", target).splitlines()
    assert target.read_bytes() == FILES["imagenet-dogs"].read_bytes()
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
    assert sorted(path.name for path in target.parent.iterdir()) == ["dvc.yaml", "params.yaml"], "no copy of a preset"
    assert "No value changed" in write("imagenet-dogs", target)


@pytest.mark.parametrize("name", FILES)
def test_it_says_what_to_do_next(name: str, target: Path) -> None:
    first, last = write(name, target).splitlines()
    assert first == "There was no params.yaml; a new one was written."
    assert last.startswith(f"params.yaml is now the preset {name}. Next: ")
    assert "dvc repro" in last
    assert ("prepare.path" in last) == (name in FOLDERS)
    assert ("prepare.root" in last) == (name not in ("digits", *FOLDERS))
    assert ("downloads" in last) == VALUES[name]["prepare.download"]


def test_where_there_is_no_project_it_says_how_to_make_one(tmp_path: Path) -> None:
    last = write("folder", tmp_path / "params.yaml").splitlines()[-1]
    assert "There is no dvc.yaml here, which dvc repro needs: conr new FOLDER --preset folder makes a project." in last
    assert " In it, next: set prepare.path to your images" in last


def test_a_preset_replaces_a_link_into_a_cache_and_does_not_write_to_it(target: Path, tmp_path: Path) -> None:
    (tmp_path / "cached").write_bytes(FILES["cifar10"].read_bytes())
    target.hardlink_to(tmp_path / "cached")
    write("digits", target)
    assert (tmp_path / "cached").read_bytes() == FILES["cifar10"].read_bytes()


def test_a_file_that_is_no_preset_is_kept(project: Path) -> None:
    target = project / "params.yaml"
    former = target.read_bytes()
    said = write("digits", target)
    assert "device: cpu → auto" in said
    assert "kept as params.yaml.bak." in said
    assert (project / "params.yaml.bak").read_bytes() == former

    target.write_bytes(former + b"# a second one\n")
    assert "kept as params.yaml.bak2." in write("digits", target)
    assert (project / "params.yaml.bak").read_bytes() == former

    target.write_bytes(former)
    assert "kept as params.yaml.bak." in write("digits", target)
    assert sorted(path.name for path in project.iterdir()) == ["params.yaml", "params.yaml.bak", "params.yaml.bak2"]


@pytest.mark.parametrize(
    ("former", "reason"),
    [
        (b"k: [1,", "is not valid YAML"),
        (b"seed: 0\n", "lacks the key"),
        (b"seed: \xff\n", "could not be compared"),
        (b"host:\n  framework: byol\n", "the key host is called framework now"),
    ],
    ids=["no YAML", "incomplete", "no UTF-8", "old keys"],
)
def test_a_file_that_cannot_be_read_is_kept_and_written_anew(target: Path, former: bytes, reason: str) -> None:
    target.write_bytes(former)
    said = write("stl10", target)
    assert reason in said
    assert "it was replaced" in said
    assert target.with_name("params.yaml.bak").read_bytes() == former
    assert target.read_bytes() == FILES["stl10"].read_bytes()


def test_the_command_lists_and_writes_presets_and_refuses_an_unknown_one(project: Path) -> None:
    assert run_conr(project, "preset").stdout == listing() + "\n"
    former = (project / "params.yaml").read_bytes()
    assert "there is no preset cifar-10; did you mean cifar10?" in refused(project, "preset", "cifar-10")
    assert (project / "params.yaml").read_bytes() == former
    written = run(project, "conr", "preset", "stl10")
    assert "The old params.yaml is kept as params.yaml.bak." in written
    assert (project / "params.yaml").read_bytes() == FILES["stl10"].read_bytes()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this working tree's files, nothing run in it.

    Outputs are empty: `dvc repro --dry` wants those of earlier stages to be there, and makes none.
    """
    folder = tmp_path_factory.mktemp("clone") / "conr"
    copy_tree(folder)
    for stage in YAML(typ="safe").load(folder / "dvc.yaml")["stages"].values():
        for out in map(folder.joinpath, stage["outs"]):
            out.parent.mkdir(parents=True, exist_ok=True)
            out.touch() if out.suffix else out.mkdir()
    run(folder, "git", "init", "--quiet")
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in DVC's own code
@pytest.mark.parametrize("name", FILES)
def test_dvc_plans_all_stages_of_every_preset(repository: Path, name: str) -> None:
    write(name, repository / "params.yaml")
    planned = Repo(repository).reproduce(all_pipelines=True, dry=True)
    assert [stage.name for stage in planned] == list(STAGES)
